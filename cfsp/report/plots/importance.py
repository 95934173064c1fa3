"""Figure: the importance of blocks, as measured by calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cfsp.records.record import Record
from cfsp.report.plots.base import COLOURS, add_legend, empty_panels, styled


def block_statistics(record: Record) -> dict[str, list[float]]:
    """Return statistic -> a value per block. Empty if the run needed none."""
    return dict(record.notes.get("block_statistics") or {})


@styled
def importance_by_block(calibrations: Mapping[str, Sequence[Record]]) -> Figure:
    """Draw a panel per statistic, with a bar per block and calibration: mean and range over its records.

    Models with another number of blocks have their own panel.
    """
    found: dict[tuple[str, int], dict[str, list[list[float]]]] = {}
    for label, records in calibrations.items():
        for record in records:
            for name, values in block_statistics(record).items():
                found.setdefault((name, len(values)), {}).setdefault(label, []).append(values)
    colors = dict(zip(calibrations, bar_colors(len(calibrations)), strict=True))
    labels = [*calibrations] if len(calibrations) > 1 else []
    figure, panels = empty_panels(1, len(found), 2.5, labels)
    for axes, ((name, blocks), rows) in zip(panels, sorted(found.items()), strict=True):
        draw_bars(axes, rows, colors)
        axes.set_xticks(range(0, blocks, max(1, blocks // 16)))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("block")
        axes.set_ylabel(name)
    if labels:
        add_legend(figure, {label: Line2D([], [], color=colors[label], linewidth=5) for label in labels})
    return figure


def bar_colors(count: int) -> list[str]:
    """Return a colour per calibration. Many get a colour scale, because they usually differ in a number."""
    if count <= len(COLOURS):
        return [*COLOURS[:count]]
    scale = colormaps["cividis"]
    return [to_hex(scale(place / (count - 1))) for place in range(count)]


def draw_bars(axes: Axes, rows: Mapping[str, list[list[float]]], colors: Mapping[str, str]) -> None:
    """Draw the bars of all calibrations side by side in each block."""
    width = 0.7 / len(rows)
    for place, (label, found) in enumerate(rows.items()):
        values = np.array(found)  # [records, blocks]
        mean = values.mean(axis=0)
        at = np.arange(values.shape[1]) + (place - (len(rows) - 1) / 2) * width
        add_bars(axes, at, mean, width, colors[label])
        axes.vlines(at, values.min(axis=0), values.max(axis=0), "#344054", linewidth=0.9)


def add_bars(axes: Axes, at: np.ndarray, heights: np.ndarray, width: float, color: str) -> None:
    """Draw bars as one collection. axes.bar makes an artist per bar, which takes ten times as long."""
    left, right, zero = at - width / 2, at + width / 2, np.zeros_like(heights)
    corners = [[left, zero], [left, heights], [right, heights], [right, zero]]
    bars = np.array(corners).transpose(2, 0, 1)  # [bars, 4, 2], which matplotlib draws faster than a list
    axes.add_collection(PolyCollection(bars, facecolor=color, alpha=0.85))  # pyright: ignore[reportArgumentType]  # declared as a list
    axes.autoscale_view()
