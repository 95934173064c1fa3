"""How much blocks matter, as calibration measured it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cfsp.plots.base import COLOURS, grid, styled
from cfsp.record import Record


def block_statistics(record: Record) -> dict[str, list[float]]:
    """Statistic -> a value per block; empty if the run needed none."""
    return dict(record.notes.get("block_statistics") or {})


@styled
def importance_by_block(records: Sequence[Record]) -> Figure:
    """A panel per statistic: the mean over the records, and all that lies between lowest and highest.

    Values of another number of blocks have a panel of their own.
    """
    found: dict[tuple[str, int], list[list[float]]] = {}
    for record in records:
        for name, values in block_statistics(record).items():
            found.setdefault((name, len(values)), []).append(values)
    figure, panels = grid(1, len(found), 2.5)
    for axes, ((name, _), rows) in zip(panels, sorted(found.items()), strict=True):
        values = np.array(rows)  # [records, blocks]
        blocks = np.arange(values.shape[1])
        mean = values.mean(axis=0)
        axes.bar(blocks, mean, width=0.7, color=COLOURS[0], alpha=0.85)
        # A mean of equal values may lie beyond them by a rounding.
        spread = np.maximum(0, [mean - values.min(axis=0), values.max(axis=0) - mean])
        axes.errorbar(blocks, mean, spread, fmt="none", ecolor="#344054", elinewidth=0.9, capsize=2)
        axes.set_xticks(blocks[:: max(1, len(blocks) // 16)])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("block")
        axes.set_ylabel(name)
    return figure
