"""Figures: what the knowledge analysis measured, and the weights of sources in dynamic recovery."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cfsp.model.sites import kind_of
from cfsp.records.record import Record
from cfsp.report.plots.base import COLOURS, add_legend, empty_panels, styled
from cfsp.report.plots.importance import add_bars, bar_colors
from cfsp.report.plots.widths import block_of


@styled
def knowledge_by_site(records: Sequence[Record]) -> Figure:
    """Draw a panel per kind of site: the deviation of each site, a bar per ratio; protected ones marked.

    records: of one analysis; the first one's values are drawn.
    """
    notes = records[0].notes["knowledge"]
    kinds = [*dict.fromkeys(map(kind_of, notes["deviations"]))]
    colors = bar_colors(len(notes["ratios"]))
    labels = [f"{ratio:.0%} masked" for ratio in notes["ratios"]]
    figure, panels = empty_panels(1, len(kinds), 2.5, [*labels, "protected"])
    for axes, kind in zip(panels, kinds, strict=True):
        sites = [site for site in notes["deviations"] if kind_of(site) == kind]
        values = np.array([notes["deviations"][site] for site in sites])  # [sites, ratios]
        width = 0.8 / values.shape[1]
        for place in range(values.shape[1]):
            at = np.arange(len(sites)) + (place - (values.shape[1] - 1) / 2) * width
            add_bars(axes, at, values[:, place], width, colors[place])
        held = [at for at, site in enumerate(sites) if site in notes["protected"]]
        axes.plot(held, [float(values[at].max()) for at in held], "v", color="#b42318", markersize=5)
        axes.set_xticks(range(len(sites)), [block_of(site) for site in sites])
        axes.grid(visible=False, axis="x")
        axes.set_title(kind)
        axes.set_xlabel("block")
        axes.set_ylabel(f"deviation, {notes['measure']}")
    handles = {
        label: Line2D([], [], color=color, linewidth=5) for label, color in zip(labels, colors, strict=True)
    }
    handles["protected"] = Line2D([], [], color="#b42318", marker="v", linestyle="")
    add_legend(figure, handles)
    return figure


@styled
def source_weights_by_round(records: Sequence[Record]) -> Figure:
    """Draw the weight of each source in each round, the mean over records, and below the gap to the dense."""
    rounds = max(len(record.trained["rounds"]) for record in records)
    sources = [
        *dict.fromkeys(
            name for record in records for row in record.trained["rounds"] for name in row["weights"]
        )
    ]
    colors = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(sources)}
    figure, (weights, losses) = empty_panels(1, 2, 2.5, sources)
    for name in sources:
        drawn: dict[int, list[dict[str, float]]] = {}
        for record in records:
            for number, row in enumerate(record.trained["rounds"][:rounds], start=1):
                if name in row["weights"]:
                    gap = max(0.0, row["before"][name] - row["dense"][name])
                    drawn.setdefault(number, []).append({"weight": row["weights"][name], "gap": gap})
        at = sorted(drawn)
        for axes, what in ((weights, "weight"), (losses, "gap")):
            means = [fmean(one[what] for one in drawn[number]) for number in at]
            axes.plot(at, means, color=colors[name], marker="o", markersize=3)
    for axes, label in ((weights, "fraction of the examples"), (losses, "loss above the dense model's")):
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, {name: Line2D([], [], color=colors[name], marker="o") for name in sources})
    return figure
