"""Paired comparison: exact tests and intervals, on the same questions only."""

import csv
import io
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from paired_answers import answers, keep, split, write_results

from cfsp.cli.tables import main
from cfsp.records.outcomes import Outcomes
from cfsp.records.protocols import differing
from cfsp.records.reading import read_records
from cfsp.report.runs import metric_columns
from cfsp.tables.compare import comparisons
from cfsp.tables.frame import frame
from cfsp.tables.paired import bootstrap, paired


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path)


@pytest.mark.parametrize(("lost", "won"), [(9, 2), (2, 9), (5, 5), (1, 0), (0, 0), (30, 10)])
def test_p_is_the_two_sided_binomial(lost, won):
    found = paired(*split(lost, won))
    n, least = lost + won, min(lost, won)
    tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail) if lost != won else 1.0)
    assert (found.lost, found.won) == (lost, won)
    assert found.difference == pytest.approx((won - lost) / found.n)
    assert found.flips == pytest.approx((lost + won) / found.n)
    assert found.low <= found.difference <= found.high
    assert found.distinguishable == (found.p < 0.05)


def test_the_interval_is_that_of_resampled_questions():
    one, other = split(18, 6, both=60, neither=36)
    difference = np.array(other.values) - np.array(one.values)
    dice = np.random.default_rng(1)
    drawn = difference[dice.integers(len(difference), size=(20_000, len(difference)))].mean(1)
    assert bootstrap(18, 6, 120) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)


def test_order_does_not_matter_but_the_questions_do():
    one, other = split(9, 2)
    turned = Outcomes("correct", other.items[::-1], other.values[::-1])
    assert paired(one, turned) == paired(one, other)
    with pytest.raises(ValueError, match="different questions or windows: 41 and 41, 40 in common"):
        paired(one, answers(other.values, first=1))
    with pytest.raises(ValueError, match="41 and 40"):
        paired(one, answers(other.values[:40]))
    with pytest.raises(ValueError, match="kinds correct and nats"):
        paired(one, replace(other, kind="nats"))
    with pytest.raises(ValueError, match="of no question"):
        paired(answers([]), answers([]))


def test_windows_share_their_difficulty():
    hard = [2.0, 3.0, 4.0, 5.0]
    one = Outcomes("nats", [*"abcd"], hard)
    other = Outcomes("nats", [*"abcd"], [2.1, 3.12, 4.08, 5.1])
    found = paired(one, other)
    reach = 3.182446 * np.std([0.1, 0.12, 0.08, 0.1], ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((0.1 - reach, 0.1 + reach))
    assert found.distinguishable
    assert found.p is None
    assert not paired(one, replace(other, values=[2.1, 2.9, 4.1, 4.9])).distinguishable
    alone = paired(Outcomes("nats", ["a"], [1.0]), Outcomes("nats", ["a"], [9.0]))
    assert alone.low is None
    assert not alone.distinguishable


def paired_cells(capsys, folder, against, *more):
    """The rows of the table with a paired test, as CSV: dictionaries."""
    names = ["--rows", "method", "--metric", "acc/x", "--against", against, "--paired", "--format", "csv"]
    main([str(folder), *names, *more])
    return [*csv.DictReader(io.StringIO(capsys.readouterr().out))]


def rows(out):
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    return {cell[0]: cell[1] for cell in cells}


def test_tables_mark_what_is_not_distinguishable(results, capsys):
    main([str(results), "--rows", "method", "--metric", "acc/x", "--against", "near0.20", "--paired"])
    out = capsys.readouterr().out
    assert "≈" not in rows(out)["near"]
    assert "not distinguishable from near0.20 on the same questions" in out
    assert "1 not compared: without outcomes of single questions" in out
    main([str(results), "--metric", "acc/x", "--rows", "method", "--against", "dense", "--paired"])
    marks = {method: cell.endswith("≈") for method, cell in rows(capsys.readouterr().out).items()}
    assert marks["far"] is False


def test_runs_of_another_model_or_protocol_stay_out(results, capsys):
    """A second model in the folder, and one of another protocol, change no figure."""
    arguments = [
        str(results),
        "--rows",
        "method",
        "--metric",
        "acc/x",
        "--paired",
        "--format",
        "csv",
        "--against",
    ]

    def told(against):
        main([*arguments, against])
        lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
        found = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
        return {(one["method"], one["mean"]): one["p"] for one in found if "method" in one}

    before = told("dense")
    found, _ = read_records([results])
    (far,) = [one for one in found.values() if one.id.startswith("far")]

    def save(name, **changes):
        metrics = {
            side: {"acc/x": replace(one["acc/x"], **changes.get(side, {}))}
            for side, one in far.metrics.items()
        }
        replace(far, id=name, metrics=metrics).save(results.parent)

    save("model", dense={"value": 0.9})
    other = {"protocol": {**far.metrics["pruned"]["acc/x"].protocol, "dtype": "bfloat16"}}
    save("half", dense=other, pruned=other)
    after = told("dense")
    assert before.items() <= after.items()
    marked = [*arguments[:-3], "--paired", "--against"]
    main([*marked, "half"])
    assert "half has another protocol: they differ in dtype" in capsys.readouterr().out


def test_what_older_protocols_lack_is_no_difference():
    old, new = {"shots": 0}, {"shots": 0, "tokenizer_sha256": "a", "ends": [2]}
    assert differing([old, new]) == ()
    assert differing([new, {**new, "ends": [2, 3]}, old]) == ("ends",)
    assert differing([old, {**new, "shots": None}]) == ("shots",)
    assert differing([old, {}]) == ("shots",)


def test_older_records_share_tables_with_new_ones(results):
    found, _ = read_records([results])
    old = next(one for one in found.values() if one.id.startswith("far"))
    metric = {side: one["acc/x"] for side, one in old.metrics.items()}
    later = {
        side: {"acc/x": replace(one, protocol={**one.protocol, "tokenizer_sha256": "a"})}
        for side, one in metric.items()
    }
    new = replace(old, id="new", metrics=later)
    assert len(comparisons(frame([old, new]), "acc/x", "method")) == 1
    assert [*metric_columns([old, new]).values()] == ["acc/x"]


def test_runs_of_another_model_stay_out_of_a_cell(tmp_path, capsys):
    keep(tmp_path, "m", *split(1, 16))
    (alone,) = paired_cells(capsys, tmp_path, "dense")
    assert float(alone["p"]) < 0.05
    keep(tmp_path, "m", *split(3, 3, both=30), model={"path": "n"})
    one, other = sorted(paired_cells(capsys, tmp_path, "dense"), key=lambda cell: cell["model"])
    assert one == alone
    assert float(other["difference"]) == 0


def test_runs_of_another_protocol_are_not_compared(tmp_path, capsys):
    keep(tmp_path, "m", *split(1, 16))
    keep(tmp_path, "m", *split(1, 16), seed=1)
    keep(tmp_path, "m", *split(3, 3, both=31), seed=2, protocol="b")
    one, other = sorted(paired_cells(capsys, tmp_path, "m0.20"), key=lambda cell: cell["protocol"])
    assert one["mark"] == "≈≡"
    assert other["mark"] == "?"
    assert other["p"] == other["difference"] == ""
    main([str(tmp_path), "--rows", "method", "--metric", "acc/x", "--against", "m0.20", "--paired"])
    out = capsys.readouterr().out.partition("window b")
    assert "not compared" not in out[0]
    assert "1 not compared: m0.20 has another protocol: they differ in window" in out[2]


def test_every_mark_means_one_thing(results, capsys):
    cells = paired_cells(capsys, results, "near0.20")
    assert {cell["method"]: cell["mark"] for cell in cells} == {"near": "≡", "far": "", "old": "?"}
    cells = paired_cells(capsys, results, "dense")
    assert {cell["method"]: cell["mark"] for cell in cells} == {"near": "≈", "far": "", "old": "?"}
    main([str(results), "--rows", "method", "--metric", "acc/x", "--against", "far0.20", "--paired"])
    out = capsys.readouterr().out
    assert rows(out)["old"].endswith(" ?")
    assert rows(out)["far"].endswith(" ≡")
    for meaning in ("≡: far0.20 itself", "?: not compared", "no mark: distinguishable"):
        assert meaning in out
    assert "one of them at least" not in out


def test_one_seed_that_is_alike_marks_its_cell(tmp_path, capsys):
    for seed, others in enumerate([split(1, 16), split(8, 9, both=13, neither=17)]):
        keep(tmp_path, "m", *others, seed=seed)
    (cell,) = paired_cells(capsys, tmp_path, "dense")
    assert cell["mark"] == "≈"
    assert cell["p"] == ""
    main([str(tmp_path), "--rows", "method", "--metric", "acc/x", "--against", "dense", "--paired"])
    assert "in a cell of several runs, a mark is of one of them at least" in capsys.readouterr().out


def test_csv_has_the_figures_of_the_test(results, capsys):
    (far,) = [cell for cell in paired_cells(capsys, results, "dense") if cell["method"] == "far"]
    assert float(far["p"]) == pytest.approx(2 * (1 + 21) / 2**21)
    assert float(far["difference"]) == pytest.approx(-19 / 51)
    assert float(far["low"]) < float(far["difference"]) < float(far["high"]) < 0
    assert float(far["flips"]) == pytest.approx(21 / 51)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paired"], "--paired: expected --against RUN"),
        (["--against", "dense"], "--against 'dense': expected --paired beside the id of a record"),
        (["--against", "far0.20"], "--against 'far0.20': expected --paired"),
        (["--against", "nothing", "--paired"], "'nothing': 0 records; expected dense, best, or the id"),
    ],
)
def test_bad_arguments_are_told(results, capsys, arguments, message):
    with pytest.raises(SystemExit, match="1"):
        main([str(results), "--metric", "acc/x", "--rows", "method", *arguments])
    assert message in capsys.readouterr().err
