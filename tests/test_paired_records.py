"""Two records side by side: what cfsp-compare shows of the same questions."""

import math
import re
from dataclasses import replace

import pytest
import tabled
from paired_answers import answers, write_results

from cfsp.cli.terminal import show_sections
from cfsp.records.outcome_file import named_outcomes, write_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Metric
from cfsp.report.paired_runs import paired_section
from cfsp.tables.paired import bootstrap


@pytest.fixture
def results(tmp_path):
    return write_results(tmp_path)


def test_nothing_is_infinite():
    assert all(math.isfinite(value) for value in bootstrap(0, 0, 1))


def test_records_are_compared_without_their_models(results, capsys, monkeypatch):
    from cfsp.cli.compare import main as compare

    monkeypatch.setenv("COLUMNS", "200")
    compare(["dense", str(results / "far0.20.json")])
    out = capsys.readouterr().out
    assert "A is the dense model of far0.20, B is far0.20" in out
    (line,) = [line for line in out.splitlines() if "acc/x" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[1:4] == ["51", "0.7843", "0.4118"]
    assert cells[6:] == ["41.2%", "2.1e-05", "differ"]
    compare([str(results / "far0.20.json"), str(results / "far0.20.json")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "acc/x" in line]
    assert line.split("│")[-2].strip() == "≈"


def test_the_terminal_says_what_a_difference_is_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    losses = {"A": [3.4, 3.5, 3.6], "B": [3.5, 3.65, 3.75]}
    sides = []
    for name, values in losses.items():
        metric = Metric(math.exp(sum(values) / 3), None, 3, "lower", {"window": 8, "text": "x"})
        sides.append((name, {"perplexity/x": metric}, {"perplexity/x": Outcomes("nats", [*"abc"], values)}))
    section = paired_section(*sides)
    show_sections([section])
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "perplexity/x" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert float(cells[4]) == pytest.approx(math.log(float(cells[3]) / float(cells[2])), abs=1e-4)
    assert "\nB − A: difference; of perplexities the difference of their natural logarithms" in out
    assert "\nverdict: differ: p < 0.05, or without a p an interval that leaves out 0" in out
    assert not {"flips", "p"} & {*section.tables[0].columns}  # of questions alone
    for table in section.tables:
        assert table.caption in out
        assert all(meaning in out for meaning in table.columns.values())


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"dtype": "float16"}, "acc/x: the protocols differ in dtype; expected the same"),
        (
            {"files_sha256": {"x:": "a"}, "questions": "files:a.jsonl"},
            {"files_sha256": {"x:": "b"}, "questions": "files:b.jsonl"},
            r"acc/x: the questions come from different files \(files:a.jsonl or files:b.jsonl\)",
        ),
        (
            {"tokens_sha256": "a"},
            {"tokens_sha256": "b"},
            "acc/x: the tokens that the model reads are not the",
        ),
    ],
)
def test_protocols_that_differ_are_told_in_words(one, other, message):
    sides = [
        (name, {"acc/x": Metric(0.5, None, 2, "higher", protocol)}, {"acc/x": answers([0, 1])})
        for name, protocol in (("A", one), ("B", other))
    ]
    with pytest.raises(ValueError, match=message):
        paired_section(*sides)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["far0.20.json", "old0.20.json"], "keeps no outcomes of single questions"),
        (["far0.20.json", "lost.json"], "lost.json: no such file; expected a record"),
        (["dense", "lost.json"], "lost.json: no such file; expected a record"),
        (["dense", "reference"], "dense is the dense model of a record; expected one beside it"),
        (["far0.20.json", "reference"], "is a record and .*reference is not; expected two records"),
        (["far0.20.json", "other.json"], "acc/x: outcomes of different questions or windows: 51 and 1"),
    ],
)
def test_records_that_cannot_be_paired_are_refused(results, capsys, pair, message):
    from cfsp.cli.compare import main as compare

    made = tabled.record("other", 0.2, 1.0, better="higher", name="acc/x")
    metrics = {
        model: {"acc/x": replace(metrics["acc/x"], outcomes=answers([1], first=99))}
        for model, metrics in made.metrics.items()
    }
    made = named_outcomes(replace(made, metrics=metrics))
    write_outcomes(results.parent, made)
    made.save(results.parent).rename(results / "other.json")
    with pytest.raises(SystemExit, match="1"):
        compare([str(results / one) if one.endswith(".json") else one for one in pair])
    error = capsys.readouterr().err
    assert re.search(message, error), error
