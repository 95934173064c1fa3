"""Routed runs in records, tables and the report: what they are compared by, and what they are called."""

from dataclasses import replace

import pytest
from routed_studies import MAKERS, routed_record
from studies import metric, record

from cfsp.records.record import Record
from cfsp.records.wanted import wanted_of
from cfsp.report.groups import contests, perplexities, points
from cfsp.report.names import method_names
from cfsp.report.overview import Compared, glance_table
from cfsp.report.plots.base import looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.report.quality import quality_table
from cfsp.report.runs import runs_section
from cfsp.tables.compare import comparisons, frame, wide
from cfsp.tables.formats import notes_on_cells
from cfsp.tables.ranking import why_no_best

METRIC = "perplexity/x"


def best(found):
    """Return the methods of every contest with the best of them, or the reason why there is none."""
    (measure,) = perplexities(found)
    made = contests(points(found, method_names(found)), measure)
    return [(one.wanted.text, [point.method for point in one.best] or one.why_none) for one in made]


def test_another_active_share_is_another_contest():
    """TEAL at half and MoEfication at 31 % removed alike shares: nothing."""
    teal, moe = routed_record("teal", 0.5, 0.505), routed_record("moefication", 0.31, 0.31, 40.0)
    assert best([teal, moe]) == [("50% active", "no rival"), ("31% active", "no rival")]
    assert best([teal, routed_record("moefication", 0.5, 0.31, 40.0)]) == [("50% active", "no rival")] * 2
    assert best([teal, routed_record("wina", 0.5, 0.5, 19.0)]) == [("50% active", ["wina"])]
    assert best([teal, routed_record("wina", 0.5, None, 19.0)]) == [("50% active", ["wina"])]


def test_routed_and_pruned_runs_are_no_rivals():
    cut = replace(record("CFSP", 0.0), sparsity={"sites": 0.0, "blocks": 0.0, "model": -0.021})
    assert best([cut, routed_record()]) == [("50% active", "no rival"), ("0%", "no rival")]
    saved = routed_record(config=record("FLAP", 0.0).config, notes={}, used=0.5)  # measured alone
    assert best([cut, saved]) == [("0%", "no rival")] * 2


def test_active_shares_too_far_apart_have_no_best():
    assert why_no_best([1.0, 2.0], [0.0, 0.0], [0.30, 0.52]) == "30.0% to 52.0% active"
    assert why_no_best([1.0, 2.0], [0.0, 0.0], [0.500, 0.505]) == ""


def test_a_record_knows_what_it_was_asked_for_and_what_it_uses(tmp_path):
    one = routed_record("lte", 0.3, 0.28)
    assert (one.wanted.text, one.active, one.made) == ("30% active", 0.28, "routed")
    assert wanted_of(one.config) == one.wanted
    assert routed_record("lte", 0.3).active == pytest.approx(0.3)
    older = replace(one, routes=None, notes={})
    assert (older.wanted, older.routed) == (one.wanted, True)
    alone = replace(one, config=record().config)  # a saved model that is measured: its notes say the share
    assert alone.wanted == one.wanted
    dense = record(**{"active_share/x": (metric(1, {}), metric(1, {}))})
    assert (dense.active, dense.routed, dense.made) == (1, False, "pruned")
    assert Record.load(one.save(tmp_path)) == one


@pytest.mark.parametrize("method", ["lte", *MAKERS])
def test_methods_are_called_by_their_schedule_or_the_maker_of_their_routers(method):
    found = [routed_record(method, 0.5), routed_record(method, 0.3), record("CFSP", 0.2)]
    assert {*method_names(found).values()} == {method, "cfsp"}
    assert [*frame(found)["criterion"]] == [method, method, "cfsp"]


def test_tables_say_how_much_is_active():
    found = [routed_record("teal", 0.5, 0.505), routed_record("moefication", 0.5, 0.31, 40.0)]
    (one,) = comparisons(frame(found), METRIC, "criterion")
    shown = wide(one, bold=lambda text: f"**{text}**")
    assert [*shown.columns] == ["50% active"]
    assert dict(shown["50% active"]) == {
        "teal": "20.00 (50.5% active)",
        "moefication": "40.00 (31.0% active)",
    }
    assert "or the share of a routed model's units that tokens use (active)" in notes_on_cells(one)[0]
    (cut,) = comparisons(frame([record("CFSP", 0.2)]), METRIC, "criterion")
    assert "active" not in cut.cells
    assert "routed" not in notes_on_cells(cut)[0]


def test_quality_is_drawn_against_what_was_removed_or_what_is_used():
    routed = [routed_record("teal", share, used) for share, used in ((0.3, 0.31), (0.5, 0.505))]
    cut = record("CFSP", 0.2)
    for found, axes_of in (
        ([*routed, cut], ["parameters", "uses"]),
        (routed, ["uses"]),
        ([cut], ["parameters"]),
    ):
        (measure,), names = perplexities(found), method_names(found)
        panels = quality_by_size(measure, names, looks(names.values())).axes
        assert [axes.get_xlabel().split()[-1] for axes in panels] == axes_of
        drawn = {tuple(line.get_xdata()) for line in panels[-1].lines}
        assert ((0.505, 0.31) in drawn) == (len(found) > 1)
        assert ((1.0,) in drawn) == (len(found) > 1)  # the dense model uses all


def test_the_report_shows_active_shares_beside_removed_ones():
    found = [routed_record("teal", 0.5, 0.505), record("CFSP", 0.2)]
    (measure,), names = perplexities(found), method_names(found)
    glance = glance_table([Compared("tiny", found, names, [measure], [])])
    assert glance.caption.endswith("among methods that lost and use alike shares (to a point)")
    (runs,) = runs_section(found, "tiny", "runs", names).tables
    for table in (glance, quality_table(measure, names), runs):
        at = [*table.columns].index("active")
        assert sorted(row[at].text for row in table.rows) == ["50.5%", "–"]
    assert "active" not in quality_table(perplexities(found[1:])[0], names).columns
