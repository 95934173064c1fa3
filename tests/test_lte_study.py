"""LTE's study: its figure has a point for every method and share, the mean over seeds."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from routed_studies import routed_record

TABLE = Path(__file__).parent.parent / "experiments" / "lte" / "table.py"
TRAINED = {"steps": 200}


@pytest.fixture
def table(monkeypatch):
    spec = importlib.util.spec_from_file_location("lte_table", TABLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "METRIC", "perplexity/x")
    monkeypatch.setattr(module, "method", lambda record: record.notes["method"])
    return module


def run(method, asked, used, value, **options):
    one = routed_record("teal", asked, used, value, **options)
    return replace(one, notes={**one.notes, "method": method})


def test_the_figure_has_the_means_of_seeds_and_no_other_steps(table):
    found = [
        run("TEAL", 0.5, 0.51, 20.0),
        run("TEAL", 0.5, 0.53, 22.0),
        run("TEAL", 0.2, 0.21, 30.0),
        run("LTE", 0.5, 0.5, 12.0, schedule_training=TRAINED),
        run("LTE", 0.5, 0.5, 99.0, schedule_training={"steps": 20}),
        run("LTE, lambda 0", 0.5, 0.5, 99.0, schedule_training=TRAINED),
    ]
    drawn = [
        {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines[1:]}
        for axes in table.figure(found).axes
    ]
    assert drawn == [{((0.21, 0.52), (30.0, 21.0))}, {((0.5,), (12.0,))}]
