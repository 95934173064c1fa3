"""Figures: training curves of recoveries, and of schedules that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cfsp.records.record import Record
from cfsp.report.plots.base import Look, add_legend, empty_panels, method_handles, styled

Points = tuple[list[int], list[float]]
"""Steps, and the value at each."""

CURVES = {"curve": "training loss", "held_out_curve": "held-out loss"}


def loss_curve(record: Record, kind: str) -> Points:
    """Return one curve of a recovery: `curve` or `held_out_curve`."""
    curve = record.trained[kind]
    return [point["step"] for point in curve], [point["loss"] for point in curve]


def schedule_curve(record: Record, kind: str) -> Points:
    """Return one curve of a schedule's training; `removed` is the masked fraction of the sites."""
    training = record.schedule_training or {}
    value, rows = ("removed", "curve") if kind == "removed" else ("loss", kind)
    curve = [point for point in training.get(rows, []) if value in point]
    return [point["step"] for point in curve], [point[value] for point in curve]


def recovery_curves(
    records: Sequence[Record], names: Mapping[str, str], styles: Mapping[str, Look]
) -> Figure:
    """Draw a row of panels per asked sparsity: the losses of recovery."""
    return curves(records, names, styles, CURVES, loss_curve)


def schedule_curves(
    records: Sequence[Record], names: Mapping[str, str], styles: Mapping[str, Look], removed: str
) -> Figure:
    """Draw a row of panels per asked share: the losses, and what masks remove or routers leave out.

    removed: the title of the second.
    """
    return curves(records, names, styles, {**CURVES, "removed": removed}, schedule_curve)


@styled
def curves(
    records: Sequence[Record],
    names: Mapping[str, str],
    styles: Mapping[str, Look],
    titles: Mapping[str, str],
    curve_of: Callable[[Record, str], Points],
) -> Figure:
    """Draw a panel per asked sparsity and curve, with a thin line per record in its method's colour."""
    shares = sorted({record.wanted for record in records})
    trained = {names[record.id] for record in records}
    methods = [method for method in dict.fromkeys(names.values()) if method in trained]
    kinds = [kind for kind in titles if any(curve_of(record, kind)[0] for record in records)]
    figure, panels = empty_panels(len(shares), len(kinds), 2.2, methods)
    places = [(share, kind) for share in shares for kind in kinds]
    for axes, (share, kind) in zip(panels, places, strict=True):
        for record in records:
            steps, values = curve_of(record, kind)
            if record.wanted == share and steps:
                look = styles[names[record.id]]
                few = look.marker if len(steps) < 30 else ""
                style: dict[str, Any] = {**look.line, "marker": few}
                axes.plot(steps, values, **style, alpha=0.8, markersize=3)
        axes.set_title(f"{titles[kind]}, {share.text} asked")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, method_handles(methods, styles))
    return figure
