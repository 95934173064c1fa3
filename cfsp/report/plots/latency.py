"""Figures: latency against size, and quality against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfsp.report.groups import Measure, Point, by_method, pareto, points
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
def latency_by_size(
    measures: Sequence[Measure], names: Mapping[str, str], styles: Mapping[str, Look]
) -> Figure:
    """Draw a panel per stage and shape, with the range of the rounds as bars, and the Pareto front."""
    timed = {names[record.id] for measure in measures for record in measure.records}
    methods = [method for method in dict.fromkeys(names.values()) if method in timed]
    columns = min(2, len(measures))
    figure, panels = empty_panels(-(-len(measures) // columns), columns, 2.6, methods)
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    for axes, measure in zip(panels, measures, strict=False):
        found = points(measure.records, names)
        pairs = [(point.parameters, point.spread(measure.read).mean) for point in found]
        dense = measure.records[0].parameters["dense"]["model"]
        draw_front(axes, [*pairs, (dense, measure.dense)])
        ends = [measure.dense]
        for point, (x, y) in zip(found, pairs, strict=True):
            low, high = timed_range(point, measure)
            ends += [low, high]
            bars = [[max(0.0, y - low)], [max(0.0, high - y)]]
            style: dict[str, Any] = {**styles[point.method].line, "linestyle": "none"}
            axes.errorbar(x, y, bars, elinewidth=0.8, capsize=1.5, **style)
        axes.plot(dense, measure.dense, "*", color=DENSE, markersize=9)
        show_logarithmic(axes, ends)
        show_parameters(axes, dense)
        axes.set_ylabel("milliseconds")
        axes.set_title(measure.title)
    add_legend(figure, method_handles(methods, styles))
    return figure


@styled
def quality_by_latency(
    quality: Measure, latency: Measure, names: Mapping[str, str], styles: Mapping[str, Look]
) -> Figure:
    """Draw quality against latency, for records with both measures."""
    timed = {record.id for record in latency.records}
    lines = by_method(points([one for one in quality.records if one.id in timed], names))
    figure, (axes,) = empty_panels(1, 1, 2.9, [*lines])
    pairs = [(latency.dense, quality.dense)]
    axes.plot(*pairs[0], "*", color=DENSE, markersize=9)
    for method, found in lines.items():
        both = [(point.spread(latency.read).mean, point.spread(quality.read).mean) for point in found]
        style: dict[str, Any] = {**styles[method].line, "linestyle": "none"}
        axes.plot(*zip(*both, strict=True), **style)
        pairs += both
    draw_front(axes, pairs)
    show_logarithmic(axes, [value for _, value in pairs])
    axes.set_xlabel(f"{latency.title}, milliseconds")
    axes.set_ylabel(f"{quality.quantity} ({quality.better} is better)")
    add_legend(figure, method_handles(lines, styles))
    return figure


def draw_front(axes: Axes, pairs: Sequence[tuple[float, float]]) -> None:
    """Draw the Pareto front as a step line."""
    front = [pairs[index] for index in pareto(pairs)]
    axes.step(*zip(*front, strict=True), where="post", color="#98a2b3", linewidth=2.5, alpha=0.6, zorder=1)


def timed_range(point: Point, measure: Measure) -> tuple[float, float]:
    """Return the lowest and the highest value of all rounds of all records."""
    metrics = [record.metrics["pruned"][measure.names[0]] for record in point.records]
    ends = [end for metric in metrics for end in metric.spread or [metric.value]]
    return min(ends), max(ends)
