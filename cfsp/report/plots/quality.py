"""Figure: quality against size, and of routed models against the share of units that a token uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfsp.report.groups import Measure, Point, by_method, points
from cfsp.report.plots.base import (
    DENSE,
    Look,
    add_legend,
    empty_panels,
    method_handles,
    show_active,
    show_logarithmic,
    show_parameters,
    styled,
)


@styled
def quality_by_size(measure: Measure, names: Mapping[str, str], styles: Mapping[str, Look]) -> Figure:
    """Draw a line per method, mean and standard deviation over seeds. The dense model is a dashed line.

    Routed models are as large as the dense one. They have a panel of their own.
    """
    found = points(measure.records, names)
    kinds = sorted({one.routed for one in found})
    methods = [*by_method(found)]
    figure, panels = empty_panels(1, len(kinds), 3.1, methods)
    dense = measure.records[0].parameters["dense"]["model"]
    for axes, routed in zip(panels, kinds, strict=True):
        show_dense(axes, measure, 1.0 if routed else dense)
        members = [one for one in found if one.routed == routed]
        draw(axes, measure, members, lambda one: one.active if one.routed else one.parameters, styles)
        if routed:
            show_active(axes)
        else:
            show_parameters(axes, dense)
        axes.set_ylabel(f"{measure.quantity} ({measure.better} is better)")
        axes.margins(y=0.12)
    add_legend(figure, method_handles(methods, styles))
    return figure


def draw(
    axes: Axes,
    measure: Measure,
    found: Sequence[Point],
    place: Callable[[Point], float],
    styles: Mapping[str, Look],
) -> None:
    """Draw points at their places on the x axis, those of a method joined."""
    values, bars = [measure.dense], []
    for method, members in by_method(found).items():
        line = sorted(members, key=place, reverse=True)
        xs, spreads = [place(point) for point in line], [point.spread(measure.read) for point in line]
        means = [spread.mean for spread in spreads]
        axes.plot(xs, means, **styles[method].line)
        for x, spread in zip(xs, spreads, strict=True):
            if spread.std:
                bars.append((x, spread.mean - spread.std, spread.mean + spread.std, styles[method].color))
        values += means
    if bars:  # all at once: errorbar would draw five lines for each method and take ten times as long
        xs, lows, highs, colors = zip(*bars, strict=True)
        axes.vlines(xs, lows, highs, colors, linewidth=0.9)
    show_logarithmic(axes, values)


def show_dense(axes: Axes, measure: Measure, x: float) -> None:
    """Draw the dense model as a star at x, and its value as a dashed line."""
    axes.axhline(measure.dense, color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
    axes.plot(x, measure.dense, "*", color=DENSE, markersize=9)
    higher = measure.better == "higher"
    axes.annotate(
        f"dense {measure.dense:.4g}",
        (0, measure.dense),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3 if higher else -3),
        textcoords="offset points",
        va="bottom" if higher else "top",
        color=DENSE,
    )
