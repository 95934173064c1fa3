"""Sections on what pruning chose: kept widths, and the importance of blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cfsp.methods import part_texts
from cfsp.plots.importance import block_statistics, importance_by_block
from cfsp.plots.widths import kept_widths
from cfsp.record import Record
from cfsp.report.base import Plot, Section


def widths_section(
    records: Sequence[Record], model: str, section_id: str, names: Mapping[str, str]
) -> Section:
    figure = kept_widths(records, names)
    label = "Share of units kept, a row per method and sparsity, a column per block"
    caption = "Mean over seeds, in per cent; white: not among the sites to prune."
    intro = "How many units of each site are left: dark is what a method thinks it can do without."
    return Section(section_id, "Kept widths", model, intro, {}, [Plot(section_id, figure, label, caption)])


def importance_section(records: Sequence[Record], model: str, section_id: str) -> Section:
    """A figure per calibration: other text or other windows, other statistics."""
    groups = defaultdict(list)
    measured = [record for record in records if block_statistics(record)]
    texts = part_texts([record.config for record in measured], "calibration")
    for record, text in zip(measured, texts, strict=True):
        groups[text].append(record)
    plots = []
    for place, (text, found) in enumerate(sorted(groups.items()), start=1):
        name = section_id if len(groups) == 1 else f"{section_id}-{place}"
        caption = f"Calibration: {text}. Bars are means over {len(found)} runs, whiskers lowest and highest."
        label = f"Coarse importance per block, {text}"
        plots.append(Plot(name, importance_by_block(found), label, caption))
    intro = "What calibration says of whole blocks: how far each one turns the hidden state, for example."
    return Section(section_id, "Coarse importance per block", model, intro, {}, plots)
