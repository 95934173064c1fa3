"""The terminal's summary of one record."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from studies import record

from cfsp.running.summary import share_bar, sparkline, summary


def test_bar():
    assert share_bar(0.5, width=4) == "██░░"


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"


def shown(one):
    console = Console(file=io.StringIO(), width=200)
    console.print(summary(one))
    return console.file.getvalue()


@pytest.mark.parametrize(("dense", "pruned", "told"), [(0.0, 0.0, False), (0.0, 0.5, True), (0.5, 0.0, True)])
def test_prompts_that_were_cut_are_shown_if_any_were(dense, pruned, told):
    one = record()
    perplexity = one.metrics["dense"]["perplexity/x"]
    for model, value in (("dense", dense), ("pruned", pruned)):
        one.metrics[model]["cut_prompts/x"] = replace(perplexity, value=value)
    assert ("cut_prompts/x" in shown(one)) == told


def test_names_are_no_markup():
    said = shown(replace(record(path="[b] [red]x"), overlaps=["[/i] is measured on"]))
    assert "[b] [red]x" in said
    assert "[/i] is measured on" in said
