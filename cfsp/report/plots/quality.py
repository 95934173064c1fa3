"""Figure: quality against size."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from cfsp.report.groups import Measure, by_method, points
from cfsp.report.plots.base import (
    DENSE,
    Look,
    add_legend,
    empty_panels,
    method_handles,
    show_logarithmic,
    show_parameters,
    styled,
)


@styled
def quality_by_size(measure: Measure, names: Mapping[str, str], styles: Mapping[str, Look]) -> Figure:
    """Draw a line per method, mean and standard deviation over seeds. The dense model is a dashed line."""
    lines = by_method(points(measure.records, names))
    methods = [*lines]
    figure, (axes,) = empty_panels(1, 1, 3.1, methods)
    dense = measure.records[0].parameters["dense"]["model"]
    axes.axhline(measure.dense, color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
    axes.plot(dense, measure.dense, "*", color=DENSE, markersize=9)
    axes.annotate(
        f"dense {measure.dense:.4g}",
        (0, measure.dense),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3 if measure.better == "higher" else -3),
        textcoords="offset points",
        va="bottom" if measure.better == "higher" else "top",
        color=DENSE,
    )
    values, bars = [measure.dense], []
    for method in methods:
        found = lines[method]
        spreads = [point.spread(measure.read) for point in found]
        means = [spread.mean for spread in spreads]
        xs = [point.parameters for point in found]
        axes.plot(xs, means, **styles[method].line)
        for x, spread in zip(xs, spreads, strict=True):
            if spread.std:
                bars.append((x, spread.mean - spread.std, spread.mean + spread.std, styles[method].color))
        values += means
    if bars:  # all at once: errorbar would draw five lines for each method and take ten times as long
        xs, lows, highs, colors = zip(*bars, strict=True)
        axes.vlines(xs, lows, highs, colors, linewidth=0.9)
    show_logarithmic(axes, values)
    show_parameters(axes, dense)
    axes.set_ylabel(f"{measure.quantity} ({measure.better} is better)")
    axes.margins(y=0.12)
    add_legend(figure, method_handles(methods, styles))
    return figure
