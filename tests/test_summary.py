"""The terminal's summary of one record."""

import io
from dataclasses import replace

from rich.console import Console
from studies import record

from cfsp.running.summary import share_bar, sparkline, summary


def test_bar():
    assert share_bar(0.5, width=4) == "██░░"


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_names_are_no_markup():
    one = record(path="[b] [red]x")
    console = Console(file=io.StringIO(), width=200)
    console.print(summary(replace(one, overlaps=["[/i] is measured on"])))
    shown = console.file.getvalue()
    assert "[b] [red]x" in shown
    assert "[/i] is measured on" in shown
