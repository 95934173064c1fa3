"""How much of every site is left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfsp.model.sites import kind_of
from cfsp.records.record import Record
from cfsp.report.groups import Point, points
from cfsp.report.plots.base import WIDTH, styled

ROWS = 45
"""What a page can show; of more, only the sparsity that most methods have."""


@styled
def kept_widths(records: Sequence[Record], names: Mapping[str, str]) -> Figure:
    """A row per method and sparsity, a column per block, a panel per kind of site; colour: share kept."""
    rows = readable_rows(points(records, names))
    sites = list(dict.fromkeys(site for record in records for site in record.widths))
    kinds = list(dict.fromkeys(kind_of(site) for site in sites))
    columns = {kind: [site for site in sites if kind_of(site) == kind] for kind in kinds}
    sizes = [len(columns[kind]) for kind in kinds]
    labels = [fill(f"{row.method}  {row.sparsity:.0%}", 38) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = Figure((WIDTH, 0.8 + (0.06 + 0.11 * lines) * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True, width_ratios=sizes)[0]
    images = []
    for axes, kind in zip(panels, kinds, strict=True):
        shares = np.array([[kept_share(row, site) for site in columns[kind]] for row in rows])
        edges = [np.arange(size + 1) - 0.5 for size in reversed(shares.shape)]
        images.append(axes.pcolormesh(*edges, shares, cmap="cividis", vmin=0, vmax=1, ec="white", lw=0.5))
        axes.set_title(kind)
        axes.grid(visible=False)
        axes.set_xlabel("block")
        blocks = [block_of(site) for site in columns[kind]]
        every = max(1, len(blocks) // 16)
        axes.set_xticks(range(0, len(blocks), every), blocks[::every])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if sum(sizes) <= 16:
            annotate(axes, shares)
    panels[0].invert_yaxis()
    panels[0].set_yticks(range(len(rows)), labels)
    bar = figure.colorbar(
        images[-1], ax=panels, fraction=0.03, pad=0.01, aspect=40, label="share of units kept"
    )
    bar.outline.set_visible(False)
    return figure


def readable_rows(rows: list[Point]) -> list[Point]:
    """All rows, or as many as can be read."""
    if len(rows) > ROWS:
        shares = [row.sparsity for row in rows]
        common = max(set(shares), key=lambda share: (shares.count(share), share))
        rows = [row for row in rows if row.sparsity == common]
    return rows


def kept_share(row: Point, site: str) -> float:
    """Mean over the records; NaN where a site was not among those to prune."""
    shares = [
        kept / units for units, kept in (record.widths.get(site, (1, np.nan)) for record in row.records)
    ]
    return float(np.mean(shares))


def annotate(axes: Axes, shares: np.ndarray) -> None:
    """The share in per cent in every cell, dark on light and light on dark."""
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            color = "#fefefe" if share < 0.5 else "#111111"  # no colours of the theme: cells keep theirs
            text = f"{100 * share:.0f}"
            drawn = axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6)
            drawn.set_in_layout(False)  # it lies inside its cell: no need to measure it


def block_of(site: str) -> str:
    """A block's number; all of them for a site that spans the model."""
    found = re.search(r"\.(\d+)\.", site)
    return found.group(1) if found else "all"
