"""Tables for a terminal: readable at 80 columns, broken between words and parts of names."""

import random
import re

import pytest

from cfsp.cli.fold_text import LONGEST, column_widths, fold_text
from cfsp.cli.terminal import show_sections
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Metric
from cfsp.report.base import Section, Table, number, word
from cfsp.report.paired_runs import paired_section

NAMES = {
    "prompt_level_strict_acc/ifeval": "correct",
    "exact_match/gsm8k@flexible-extract": "correct",
    "perplexity/files:raw_test.txt": "nats",
}


def compared(names):
    """Two runs with outcomes of many questions and windows."""
    dice = random.Random(0)
    sides = []
    for run in "AB":
        draws = {"correct": lambda: dice.choice([0, 1]), "nats": lambda: 3 + dice.random()}
        kept = {
            name: Outcomes(kind, [f"q{place}" for place in range(1319)], [draws[kind]() for _ in range(1319)])
            for name, kind in names.items()
        }
        metrics = {name: Metric(1.0, None, 1, "higher", {}) for name in names}
        sides.append((f"0146819c0126{run}", metrics, kept))
    return paired_section(*sides)


@pytest.mark.parametrize("names", [NAMES, {"perplexity/files:raw_test.txt": "nats"}])
@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_paired_comparison_breaks_no_word(names, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    section = compared(names)
    show_sections([section])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    grid = out[: out.index("\nn: questions")]
    (table,) = section.tables
    pieces = [*table.columns, *(cell.text for row in table.rows for cell in row)]
    for piece in (part for text in pieces for part in re.split(r"\s|(?<=[_/:@])", text)):
        assert piece in grid
    assert "≈: not distinguishable" in " ".join(out.split())
    assert ("≈" in grid) == any(row[-1].text == "≈" for row in table.rows)


def test_names_are_broken_after_slashes_and_colons_first():
    assert fold_text("perplexity/files:raw_test.txt", 18) == "perplexity/files:\nraw_test.txt"
    assert fold_text("prompt_level_strict_acc/ifeval", 24) == "prompt_level_strict_acc/\nifeval"
    assert fold_text("prompt_level_strict_acc/ifeval", 18) == "prompt_level_\nstrict_acc/ifeval"
    assert fold_text("-0.7211 to -0.5345", 10) == "-0.7211 to\n-0.5345"
    assert fold_text("a\n\n    b c", 80) == "a\n\n    b c"
    assert fold_text("", 5) == ""


@pytest.mark.parametrize("width", [3, 7, 12, 30])
def test_folding_loses_nothing_but_spaces(width):
    text = "  The acc_norm/x:y of  a@b__c, and 1,319 ≈ 2.1e-05 / 日本語 \n\nend "
    assert re.sub(r"\s", "", fold_text(text, width)) == re.sub(r"\s", "", text)


def test_room_goes_to_narrow_columns_first():
    texts = [["abc"], ["aa " * 9], ["bb " * 9]]
    assert column_widths(texts, 100) == [3, 27, 27]
    assert column_widths(texts, 23) == [3, 10, 10]
    assert column_widths(texts, 6) is None
    assert column_widths([["=" * 90]], 40) == [40]
    assert column_widths([["=" * 90]], LONGEST - 1) is None


def test_one_folded_row_draws_no_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [[word(text), number(1.5)] for text in ("size", "speed", "a very long name of a figure " * 2)]
    show_sections([Section("x", "X", "", "", {}, tables=[Table("", {"name": "", "A": ""}, rows)])])
    assert "├" not in capsys.readouterr().out
