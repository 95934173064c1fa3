"""Figures: what the knowledge analysis measured, and the weights of sources in dynamic recovery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SourceRounds:
    """What several runs drew from one source in the rounds of a stage: means over the runs that had a round.

    numbers: of the rounds, from 1. weights: fractions of the examples. gaps: losses above the dense model's.
    """

    numbers: list[int]
    weights: list[float]
    gaps: list[float]


def rounds_by_stage(records: Sequence[Record]) -> dict[str, dict[str, SourceRounds]]:
    """Return stage -> source -> its rounds. records: of one method and sparsity; they differ in seeds."""
    found: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    for record in records:
        done: Counter[str] = Counter()
        for row in record.trained["rounds"]:
            done[row["stage"]] += 1
            for name, weight in row["weights"].items():
                gap = max(0.0, row["before"][name] - row["dense"][name])
                rounds = found.setdefault(row["stage"], {}).setdefault(name, {})
                rounds.setdefault(done[row["stage"]], []).append((weight, gap))
    return {
        stage: {name: source_rounds(rounds) for name, rounds in sources.items()}
        for stage, sources in found.items()
    }


def source_rounds(rounds: Mapping[int, Sequence[tuple[float, float]]]) -> SourceRounds:
    """Return the means of weights and gaps. rounds: number of a round -> weight and gap of each run."""
    numbers = sorted(rounds)
    means = [[fmean(pair[place] for pair in rounds[number]) for number in numbers] for place in (0, 1)]
    return SourceRounds(numbers, *means)


@styled
def source_weights_by_round(records: Sequence[Record]) -> Figure:
    """Draw a row of panels per stage: the weight of each source in each round, and the gap to the dense."""
    stages = rounds_by_stage(records)
    sources = [*dict.fromkeys(name for found in stages.values() for name in found)]
    colors = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(sources)}
    figure, panels = empty_panels(len(stages), 2, 2.5, sources)
    for row, (stage, found) in enumerate(stages.items()):
        weights, gaps = panels[2 * row : 2 * row + 2]
        for name, rounds in found.items():
            look = {"color": colors[name], "marker": "o", "markersize": 3}
            weights.plot(rounds.numbers, rounds.weights, **look)
            gaps.plot(rounds.numbers, rounds.gaps, **look)
        for axes, label in ((weights, "fraction of the examples"), (gaps, "loss above the dense model's")):
            axes.set_title(stage)
            axes.set_xlabel("round")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, {name: Line2D([], [], color=colors[name], marker="o") for name in sources})
    return figure
