"""The league: one table per dense model and protocol, with seeds folded, intervals, costs and commands."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tabled

from cfsp.records.outcome_file import named_outcomes, write_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Metric, Record
from cfsp.tables.paired import paired

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments" / "league"))
import league
from table_row import figure


def made(method, value, folder, protocol="a", losses=None, seed=0, config=None, **options):
    one = tabled.record(method, 0.2, value, protocol=protocol, seed=seed)
    one = replace(one, config=one.config | (config or {}))
    options = {"command": f"cfsp criterion={method}", "seconds": {"plan": 90.0, "load": 600.0}} | options
    one = replace(one, **options)
    if losses:
        kept = {"dense": [1.0, 2.0, 3.0], "pruned": losses}
        metrics = {
            model: {
                tabled.NAME: replace(
                    metrics[tabled.NAME], stderr=0.5, outcomes=Outcomes("nats", [*"abc"], kept[model])
                )
            }
            for model, metrics in one.metrics.items()
        }
        one = named_outcomes(replace(one, metrics=metrics))
    write_outcomes(folder, one)
    path = one.save(folder)
    return {path: Record.load(path)}


def paged(records):
    pairs, faults = league.read_pairs(records)
    return league.page(records.values(), pairs, faults)


def rows_of(text):
    """Return the cells of each row of the page."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| method" not in line]
    return [[cell.strip() for cell in line.replace("\\", "").split("|")[1:-1]] for line in lines]


def headings(text):
    return [line for line in text.splitlines() if line.startswith("## ") and "Commands" not in line]


def test_rows_are_sorted_and_say_what_they_cost(tmp_path):
    records = made("flap", 6.0, tmp_path) | made("cfsp", 5.0, tmp_path, losses=[1.2, 2.21, 3.19])
    records |= made("wanda_sp", 5.5, tmp_path, losses=[1.5, 1.6, 3.0], command=None)
    text = paged(records)
    first, second, third = rows_of(text)
    assert [first[0], second[0], third[0]] == ["cfsp", "wanda_sp", "flap"]
    assert first[1:4] == ["20% of sites", "10.0%", "5.00 ± 2.15"]  # 0.5 times Student's 4.303 of three
    assert first[4] == "+0.1752 to +0.2248"
    assert first[5] == "1.50"  # of the plan alone
    assert second[4].endswith("≈")
    assert third[4] == "-"
    assert "All rows: allocator uniform, sites mlp." in text
    assert text.count("`cfsp criterion=flap`") == 1
    assert "2 runs name their commands. 1 older run keeps no command. What a command leaves out" in text


WINDOWS = {"measure": "perplexity", "window": 8, "stride": 8, "bos": False}


@pytest.mark.parametrize(
    ("protocol", "n", "expected"),
    [
        (WINDOWS, 4 * 7, " ± 1.59"),  # 4 windows: 3.182 standard errors
        (WINDOWS | {"bos": True, "stride": 7}, 4 * 7, " ± 1.59"),
        (WINDOWS | {"stride": 2}, 4 * 2, " ± 1.59"),
        (WINDOWS, 7, ""),
        ({"measure": "zero_shot"}, 250, " ± 0.98"),
        ({"measure": "fidelity", "window": 8}, 8 * 7, " ± 1.18"),
        ({"measure": "unknown"}, 250, ""),
    ],
)
def test_the_interval_of_one_run_is_students(protocol, n, expected):
    metric = Metric(5.0, 0.5, n, "lower", protocol)
    assert figure([metric], None) == f"5.00{expected}"
    assert figure([metric], paired(*[Outcomes("nats", [*"ab"], [1.0, 2.0])] * 2)) == "5.00 ± 6.35"


def test_protocols_do_not_share_a_table(tmp_path):
    records = made("flap", 6.0, tmp_path) | made("cfsp", 5.0, tmp_path, protocol="b")
    text = league.page(records.values(), {}, ["x.json: no record"])
    assert len(headings(text)) == 2
    assert "Left out: x.json" in text


def test_seeds_are_folded_into_one_row(tmp_path):
    records = made("cfsp", 5.0, tmp_path, losses=[1.2, 2.21, 3.19], seconds={"plan": 0.0})
    records |= made("cfsp", 6.0, tmp_path, losses=[1.4, 2.41, 3.39], seed=1)
    records |= made("cfsp", 7.0, tmp_path, losses=[1.5, 2.51, 3.49], seed=2)
    (row,) = rows_of(paged(records))
    assert row[3] == "6.00 ± 1.00 (n=3)"
    assert row[4] == "+0.1752 to +0.5248"
    assert row[5] == "1.50"  # the longest: another found its statistics in the cache
    assert row[7].split() == ["`cfsp0.20`", "`cfsp0.21`", "`cfsp0.22`"]


def test_the_mark_stands_if_one_seed_cannot_be_told_from_the_dense_model(tmp_path):
    records = made("cfsp", 5.0, tmp_path, losses=[1.2, 2.21, 3.19])
    records |= made("cfsp", 5.5, tmp_path, losses=[1.5, 1.6, 3.0], seed=1)
    assert rows_of(paged(records))[0][4].endswith("≈")
    records |= made("cfsp", 5.2, tmp_path, seed=2)
    assert rows_of(paged(records))[0][4] == "-"


def test_a_repeated_seed_counts_once_and_the_newest_counts(tmp_path):
    records = made("cfsp", 5.0, tmp_path / "a", created="2026-01-02")
    records |= made("cfsp", 9.0, tmp_path / "b", created="2026-01-01") | made("cfsp", 7.0, tmp_path, seed=1)
    text = paged(records)
    assert rows_of(text)[0][3] == "6.00 ± 1.41 (n=2)"
    assert "3 runs. 1 run repeats another with its seed." in text


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("criterion", [{"_target_": "cfsp.x.Taylor", "order": 1}, {"_target_": "cfsp.x.Taylor", "order": 2}]),
        ("compensation", [{"_target_": "cfsp.x.LeastSquares", "ridge": ridge} for ridge in (0.1, 1.0)]),
        ("calibration", [{"_target_": "cfsp.x.RandomWindows", "samples": samples} for samples in (8, 64)]),
        ("recovery", [{"_target_": "cfsp.x.Full", "steps": steps} for steps in (10, 100)]),
        ("sites", [["mlp"], ["mlp", "attention"]]),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_rows_of_their_own(tmp_path, part, values):
    records = {}
    for number, value in enumerate(values):
        records |= made("cfsp", 5.0 + number, tmp_path, config={part: value}, id=f"run{number}")
    first, second = rows_of(paged(records))
    assert first[0] != second[0]
    assert all("n=" not in row[3] for row in (first, second))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("fisher", ["cfsp", "cfsp(fisher)"]), (2, ["cfsp", "cfsp(metric=2)"]), (0, ["cfsp", "cfsp(metric=0)"])]
    + [(off, ["cfsp", "cfsp"]) for off in (None, False, [])],
)
def test_an_option_that_older_records_lack_is_not_hidden(tmp_path, value, expected):
    """Unless it is off: then old and new runs are of one method."""
    criterion = {"_target_": "cfsp.criteria.x.CFSP", "seed": 0}
    records = made("cfsp", 5.0, tmp_path)
    records |= made("cfsp", 6.0, tmp_path, seed=1, config={"criterion": criterion | {"metric": value}})
    assert [row[0] for row in rows_of(paged(records))] == [*dict.fromkeys(expected)]


def test_a_run_with_a_size_target_says_what_it_was_asked_for(tmp_path):
    target = {"parameters": "100M", "memory": None}
    records = made("cfsp", 5.0, tmp_path, config={"sparsity": None, "target": target})
    assert rows_of(paged(records))[0][1] == "100M parameters"


def test_a_routed_run_shows_the_share_that_a_token_uses(tmp_path):
    (record,) = made("teal", 5.0, tmp_path).values()
    shares = {"active_share/x": replace(record.metrics["pruned"][tabled.NAME], value=0.312)}
    metrics = record.metrics | {"pruned": record.metrics["pruned"] | shares}
    assert "| 31.2% active |" in paged({tmp_path: replace(record, metrics=metrics)})


def test_two_models_of_one_name_are_apart(tmp_path):
    records = {}
    for number, path in enumerate(("/home/ann/tiny/hf", "/home/jo/tiny/hf")):
        records |= made("cfsp", 5.0, tmp_path / str(number), config={"model": {"path": path}})
    records |= made(
        "cfsp",
        5.0,
        tmp_path / "larger",
        config={"model": {"path": "/home/jo/tiny/hf"}},
        parameters={stage: {"sites": 1, "blocks": 2, "model": 9_000_000} for stage in ("dense", "pruned")},
    )
    text = paged(records)
    assert [line.split(":")[0] for line in headings(text)] == [
        "## ann/tiny, 4 parameters",
        "## jo/tiny, 4 parameters",
        "## jo/tiny, 9,000,000 parameters",
    ]
    assert "/home" not in text


def test_figures_of_a_dense_model_that_only_rounding_tells_apart_share_a_table(tmp_path):
    records = made("cfsp", 5.0, tmp_path) | made("flap", 5.0, tmp_path) | made("wanda_sp", 5.0, tmp_path)
    dense = iter((4.00049, 4.00051, 4.2))
    records = {
        path: replace(
            one,
            metrics=one.metrics
            | {"dense": {tabled.NAME: replace(one.metrics["dense"][tabled.NAME], value=next(dense))}},
        )
        for path, one in records.items()
    }
    assert [line.rpartition(" ")[2] for line in headings(paged(records))] == ["4", "4.2"]


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["league.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        league.main()
    return left.value.code


def test_a_lost_file_of_outcomes_is_named_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    made("flap", 6.0, tmp_path, losses=[1.2, 2.21, 3.19])
    (path,) = made("cfsp", 5.0, tmp_path, losses=[1.2, 2.21, 3.19])
    (tmp_path / "outcomes" / Record.load(path).outcomes["file"]).unlink()
    assert run_main(monkeypatch, tmp_path, "-o", tmp_path / "page.md") == 1
    text = (tmp_path / "page.md").read_text()
    assert [row[4] for row in rows_of(text)] == ["-", "+0.1752 to +0.2248"]
    assert "Left out: outcomes of cfsp0.20: " in text
    assert str(tmp_path) not in text
    assert "cannot be read" in capsys.readouterr().err


def test_a_folder_without_records_is_one_line(tmp_path, monkeypatch, capsys):
    assert run_main(monkeypatch, tmp_path, "-o", tmp_path / "page.md") == 1
    assert capsys.readouterr().err.startswith(f"league: error: {tmp_path}: no records")
    monkeypatch.setattr(league, "PLACES", ())
    monkeypatch.setattr(league, "ROOT", tmp_path)
    assert run_main(monkeypatch, "-o", tmp_path / "page.md") == 1
    assert "league: error: no records in" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_every_run_on_the_published_page_has_its_record_here():
    named = {*re.findall(r"`([0-9a-f]{12})`", league.PAGE.read_text())}
    here = {path.stem for place in league.published() for path in place.glob("*.json")}
    assert named
    assert named <= here
