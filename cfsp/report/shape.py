"""Sections on the plan: kept widths, active units, the importance of blocks, the knowledge of sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cfsp.records.record import Record
from cfsp.report.base import MISSING, Plot, Section, Table, number, share, word
from cfsp.report.groups import key_of, points
from cfsp.report.names import part_texts
from cfsp.report.plots.activity import activity, routed_records
from cfsp.report.plots.base import Look
from cfsp.report.plots.importance import block_statistics, importance_by_block
from cfsp.report.plots.sites_and_sources import knowledge_by_site
from cfsp.report.plots.widths import kept_widths


def widths_section(
    records: Sequence[Record], model: str, section_id: str, names: Mapping[str, str]
) -> Section:
    figure = kept_widths(records, names)
    label = "Share of units kept, a row per method and sparsity, a column per block"
    caption = "Mean over seeds, in per cent; blank: not among the sites to prune."
    intro = "How many units of each site are left: dark is what a method thinks it can do without."
    return Section(section_id, "Kept widths", model, intro, {}, [Plot(section_id, figure, label, caption)])


def importance_section(records: Sequence[Record], model: str, section_id: str) -> Section:
    """Plot a bar per calibration, because statistics depend on the text and the windows."""
    groups = defaultdict(list)
    measured = [record for record in records if block_statistics(record)]
    texts = part_texts([record.config for record in measured], "calibration")
    for record, text in zip(measured, texts, strict=True):
        groups[text].append(record)
    runs = ", ".join(f"{text} ({len(found)} runs)" for text, found in sorted(groups.items()))
    caption = f"Calibration: {runs}. Bars are means over the runs, whiskers lowest and highest."
    figure = importance_by_block(dict(sorted(groups.items())))
    intro = "What calibration says of whole blocks: how far each one turns the hidden state, for example."
    plot = Plot(section_id, figure, "Coarse importance per block and calibration", caption)
    return Section(section_id, "Coarse importance per block", model, intro, {}, [plot])


def knowledge_section(records: Sequence[Record], model: str, section_id: str) -> Section:
    """Plot every knowledge analysis and what it protected once. All of these records have one."""
    groups = defaultdict(list)
    for record in records:
        groups[key_of(record.notes["knowledge"])].append(record)
    plots = []
    for place, key in enumerate(sorted(groups), start=1):
        name = section_id if len(groups) == 1 else f"{section_id}-{place}"
        runs = len(groups[key])
        caption = f"One analysis, of {runs} run{'s' if runs > 1 else ''}. Triangle: kept whole."
        plots.append(
            Plot(name, knowledge_by_site(groups[key]), "Deviation of the dense model per site", caption)
        )
    intro = "By how much the dense model gets worse when the lowest units of one site are masked."
    return Section(section_id, "Knowledge per site", model, intro, {}, plots)


def activity_section(
    records: Sequence[Record],
    model: str,
    section_id: str,
    names: Mapping[str, str],
    styles: Mapping[str, Look],
) -> Section:
    """Plot what tokens use of routed MLPs; a table of unions and FLOPs."""
    found = routed_records(records)
    figure = activity(found, names, styles)
    label = "Share of units that a token uses, per block; and experts by how many tokens use them"
    plot = Plot(section_id, figure, label, "Means over the runs of a method, measured on evaluation text.")
    intro = (
        "Nothing is removed from these MLPs: for every token a router chooses the units that are computed."
    )
    facts = next(
        one.protocol for name, one in found[0].metrics["pruned"].items() if name.startswith("active_")
    )
    return Section(section_id, "Active units", model, intro, facts, [plot], [activity_table(found, names)])


def activity_table(records: Sequence[Record], names: Mapping[str, str]) -> Table:
    """Return a table of the active share, the unions of batches, and the FLOPs per token."""
    sizes = sorted(
        {
            int(name.partition("/")[0].rpartition("_")[2])
            for record in records
            for name in record.metrics["pruned"]
            if name.startswith("union_share_of_")
        }
    )
    columns = {"method": "", "active": "share of units that a token uses"}
    columns |= {f"union of {size}": "used by any of so many tokens" for size in sizes}
    columns |= {"GFLOPs": "per token, of the linear layers in the blocks, 2^30"}
    rows = []
    for point in points(records, names):
        keys = ("active_share/", *(f"union_share_of_{size}/" for size in sizes))
        means = [mean_of(point.records, key) for key in keys]
        cells = [MISSING if mean is None else share(mean) for mean in means]
        rows.append([word(point.method), *cells, number(mean_of(point.records, "gflops_per_token/"))])
    return Table("What tokens and batches use", columns, rows)


def mean_of(records: Sequence[Record], start: str) -> float | None:
    """Return the mean of the metrics that begin so, over records and texts; None if there are none."""
    found = [
        one.value
        for record in records
        for name, one in record.metrics["pruned"].items()
        if name.startswith(start)
    ]
    return sum(found) / len(found) if found else None
