"""Sections on quality: perplexity and zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from cfsp.report.base import (
    ACTIVE,
    Cell,
    Plot,
    Section,
    Table,
    asked,
    in_common,
    measured,
    number,
    protocol_text,
    share,
    spread,
    used,
    word,
)
from cfsp.report.groups import Measure, Point, contests, points, rank_of
from cfsp.report.plots.base import Look
from cfsp.report.plots.quality import quality_by_size

CAPTION = (
    "Mean over seeds; bars are their standard deviation. The star and the dashed line are the dense model. "
    "Methods in order of the value at the largest sparsity, the best first."
)
COLUMNS = {
    "parameters": "measured parameters of the whole model",
    "model": "measured share removed of all parameters",
    "blocks": "measured share removed of all blocks",
    "sites": "measured share removed of the chosen sites",
    "runs": "records that the mean is of",
}


def perplexity_section(
    measure: Measure, model: str, section_id: str, names: Mapping[str, str], styles: Mapping[str, Look]
) -> Section:
    return Section(
        section_id,
        measured(measure.title).replace("p", "P", 1),
        model,
        "Each line is a method; further left is smaller, or uses fewer units; lower is better.",
        chips(measure) | {"dense": f"{measure.dense:,.4g}"},
        [plot(measure, section_id, names, styles)],
        [quality_table(measure, names)],
    )


def zero_shot_section(
    measure: Measure, model: str, section_id: str, names: Mapping[str, str], styles: Mapping[str, Look]
) -> Section:
    tasks = ", ".join(name.replace("acc_norm/", "acc_norm of ").replace("acc/", "") for name in measure.names)
    return Section(
        section_id,
        f"Zero-shot accuracy, {measure.title}",
        model,
        f"Of each task the accuracy that the pruning papers report: {tasks}.",
        chips(measure) | {"dense": f"{measure.dense:.4g}"},
        [plot(measure, section_id, names, styles)],
        [quality_table(measure, names)],
    )


def chips(measure: Measure) -> dict[str, str]:
    """Return the protocol's entries, without the measure in the heading and those that are off."""
    told = {key: value for key, value in measure.protocol.items() if key != "measure" and value is not None}
    return {key: protocol_text(key, value) for key, value in told.items() if value is not False}


def plot(measure: Measure, name: str, names: Mapping[str, str], styles: Mapping[str, Look]) -> Plot:
    figure = quality_by_size(measure, names, styles)
    kinds = {True: "the share of MLP units that a token uses", False: "measured parameters"}
    against = " and ".join(kinds[routed] for routed in sorted({one.routed for one in measure.records}))
    return Plot(name, figure, f"{measured(measure.title)} against {against}, a line per method", CAPTION)


def quality_table(measure: Measure, names: Mapping[str, str]) -> Table:
    """Return a table with a row per method and sparsity: the largest sparsity first, then the best value.

    The best value of an asked and measured share is highlighted, if there is one.
    """
    found = points(measure.records, names)
    found.sort(key=lambda point: rank_of(point, measure))
    found.sort(key=lambda point: point.wanted, reverse=True)
    tasks = measure.names if len(measure.names) > 1 else ()
    routed = any(record.routed for record in measure.records)
    columns = {
        "method": "the shortest name that tells the methods of this study apart",
        "asked": "sparsity asked for, of the base that the run names" + (", or active share" * routed),
        measure.quantity: f"mean ± standard deviation over the runs; {measure.better} is better",
        "of dense": "divided by the dense model's",
        **(ACTIVE if routed else {}),
        **COLUMNS,
        **dict.fromkeys(tasks, "accuracy of this task"),
    }
    best = {id(point) for contest in contests(found, measure) for point in contest.best}
    rows = [quality_row(point, measure, tasks, id(point) in best, routed) for point in found]
    caption = f"Methods by asked share, then value; bold: the best of those that {in_common(routed)}"
    return Table(caption, columns, rows)


def quality_row(
    point: Point, measure: Measure, tasks: tuple[str, ...], best: bool, routed: bool
) -> list[Cell]:
    value = point.spread(measure.read)
    return [
        word(point.method),
        asked(point.wanted),
        spread(value, best),
        number(value.mean / measure.dense, ".3f"),
        *([used(point.active)] if routed else []),
        number(round(point.parameters), ",d"),
        *(share(point.removed(base)) for base in ("model", "blocks", "sites")),
        number(len(point.records), "d"),
        *(number(fmean(one.metrics["pruned"][task].value for one in point.records), ".4f") for task in tasks),
    ]
