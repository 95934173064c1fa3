"""Figure: the fraction of units that every site keeps."""

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
"""Maximum number of rows. If there are more, only the sparsity of most methods is shown."""

NUMBERS = 200
"""Maximum number of cells with a number in them. More would be too dense to read, and slow to lay out."""


@styled
def kept_widths(records: Sequence[Record], names: Mapping[str, str]) -> Figure:
    """Draw the fraction kept: a panel per kind of site, a row per method and sparsity, a column per block."""
    rows = readable_rows(points(records, names))
    sites = list(dict.fromkeys(site for record in records for site in record.widths))
    kinds = list(dict.fromkeys(kind_of(site) for site in sites))
    columns = {kind: [site for site in sites if kind_of(site) == kind] for kind in kinds}
    sizes = [len(columns[kind]) for kind in kinds]
    labels = [fill(f"{row.method}  {row.wanted.text}", 38) for row in rows]
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
        if len(rows) * sum(sizes) <= NUMBERS:
            annotate(axes, shares)
    panels[0].invert_yaxis()
    panels[0].set_yticks(range(len(rows)), labels)
    bar = figure.colorbar(
        images[-1], ax=panels, fraction=0.03, pad=0.01, aspect=40, label="share of units kept"
    )
    bar.outline.set_visible(False)
    return figure


def readable_rows(rows: list[Point]) -> list[Point]:
    """Return all rows; if there are more than ROWS, only those of the most common sparsity."""
    if len(rows) > ROWS:
        shares = [row.wanted for row in rows]
        common = max(set(shares), key=lambda share: (shares.count(share), share))
        rows = [row for row in rows if row.wanted == common]
    return rows


def kept_share(row: Point, site: str) -> float:
    """Return the fraction kept, mean over the records. NaN if the site was not to be pruned."""
    shares = [
        kept / units for units, kept in (record.widths.get(site, (1, np.nan)) for record in row.records)
    ]
    return float(np.mean(shares))


def annotate(axes: Axes, shares: np.ndarray) -> None:
    """Write the fraction in per cent into every cell, dark on light and light on dark."""
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            color = "#fefefe" if share < 0.5 else "#111111"  # not in THEME: the cells' colours are fixed
            text = f"{100 * share:.0f}"
            drawn = axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6)
            drawn.set_in_layout(False)  # it fits in its cell, so the layout need not measure it


def block_of(site: str) -> str:
    """Return a block's index as text; "all" for a site that spans the model."""
    found = re.search(r"\.(\d+)\.", site)
    return found.group(1) if found else "all"
