"""Figure: training curves of recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cfsp.records.record import Record
from cfsp.report.plots.base import Look, add_legend, empty_panels, method_handles, styled

CURVES = {"curve": "training loss", "held_out_curve": "held-out loss"}


@styled
def recovery_curves(
    records: Sequence[Record], names: Mapping[str, str], styles: Mapping[str, Look]
) -> Figure:
    """Draw a row of panels per asked sparsity, with a thin line per record in its method's colour."""
    shares = sorted({record.config["sparsity"] for record in records})
    trained = {names[record.id] for record in records}
    methods = [method for method in dict.fromkeys(names.values()) if method in trained]
    kinds = [kind for kind in CURVES if any(record.trained[kind] for record in records)]
    figure, panels = empty_panels(len(shares), len(kinds), 2.2, methods)
    places = [(share, kind) for share in shares for kind in kinds]
    for axes, (share, kind) in zip(panels, places, strict=True):
        for record in records:
            curve = record.trained[kind]
            if record.config["sparsity"] == share and curve:
                look = styles[names[record.id]]
                steps = [point["step"] for point in curve]
                few = look.marker if len(steps) < 30 else ""
                losses = [point["loss"] for point in curve]
                style: dict[str, Any] = {**look.line, "marker": few}
                axes.plot(steps, losses, **style, alpha=0.8, markersize=3)
        axes.set_title(f"{CURVES[kind]}, {share:.0%} asked")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, method_handles(methods, styles))
    return figure
