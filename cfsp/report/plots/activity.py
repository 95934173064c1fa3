"""Figure: how much of routed MLPs tokens use, per block, and how often each expert is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from cfsp.records.record import Record
from cfsp.report.groups import Point, points
from cfsp.report.plots.base import Look, add_legend, empty_panels, method_handles, styled

BLOCK = re.compile(r"active_share_block_(\d+)/")
TENTH = re.compile(r"experts_used_(\d+)_to_\d+/")


def routed_records(records: Sequence[Record]) -> list[Record]:
    """Return the records of models that do not use all units for every token."""
    return [
        record
        for record in records
        if any(
            name.startswith("active_share/") and one.value < 1
            for name, one in record.metrics["pruned"].items()
        )
    ]


def mean_values(point: Point, pattern: re.Pattern[str]) -> dict[int, float]:
    """Return number in a metric's name -> the metric's mean over the records."""
    found: dict[int, list[float]] = {}
    for record in point.records:
        for name, metric in record.metrics["pruned"].items():
            if told := pattern.match(name):
                found.setdefault(int(told[1]), []).append(metric.value)
    return {place: fmean(values) for place, values in sorted(found.items())}


@styled
def activity(records: Sequence[Record], names: Mapping[str, str], styles: Mapping[str, Look]) -> Figure:
    """Draw the active share of every block, and a histogram of the experts by how many tokens use them."""
    rows = points(records, names)
    methods = list(dict.fromkeys(row.method for row in rows))
    figure, (left, right) = empty_panels(1, 2, 2.6, methods)
    for row in rows:
        line = styles[row.method].line
        shares, tenths = mean_values(row, BLOCK), mean_values(row, TENTH)
        left.plot([*shares], [*shares.values()], **line)
        right.plot([place + 5 for place in tenths], [*tenths.values()], **line)
    left.set_ylim(0, 1.02)
    left.set_xlabel("block")
    left.set_ylabel("share of units that a token uses")
    right.set_xlabel("per cent of the tokens that use an expert")
    right.set_ylabel("share of the experts")
    add_legend(figure, method_handles(methods, styles))
    return figure
