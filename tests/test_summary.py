"""The terminal's summary of one record."""

from cfsp.summary import bar, sparkline


def test_bar():
    assert bar(0.5, width=4) == "██░░"


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([1.0, 1.0]) == "▁▁"
