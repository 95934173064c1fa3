"""Sections on what models can still do: perplexity and zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from cfsp.report.base import Cell, Plot, Section, Table, number, share, spread, word
from cfsp.report.groups import Measure, Point, contests, points
from cfsp.report.plots.base import Look
from cfsp.report.plots.quality import quality_by_size

CAPTION = (
    "Mean over seeds; bars are their standard deviation. The star and the dashed line are the dense model."
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
        measure.title.replace("perplexity/", "Perplexity on "),
        model,
        "Each line is a method; further left is smaller, lower is better.",
        {**measure.protocol, "dense": f"{measure.dense:.5g}"},
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
        {**measure.protocol, "dense": f"{measure.dense:.4g}"},
        [plot(measure, section_id, names, styles)],
        [quality_table(measure, names)],
    )


def plot(measure: Measure, name: str, names: Mapping[str, str], styles: Mapping[str, Look]) -> Plot:
    figure = quality_by_size(measure, names, styles)
    return Plot(name, figure, f"{measure.title} against measured parameters, a line per method", CAPTION)


def quality_table(measure: Measure, names: Mapping[str, str]) -> Table:
    """A row per method and sparsity; the best of an asked sparsity stands out, where there is one."""
    found = points(measure.records, names)
    tasks = measure.names if len(measure.names) > 1 else ()
    columns = {
        "method": "the shortest name that tells the methods of this study apart",
        "asked": "sparsity asked for, of the base that the run names",
        measure.quantity: f"mean ± standard deviation over the runs; {measure.better} is better",
        "of dense": "divided by the dense model's",
        **COLUMNS,
        **dict.fromkeys(tasks, "accuracy of this task"),
    }
    best = {id(point) for contest in contests(found, measure) for point in contest.best}
    rows = [quality_row(point, measure, tasks, id(point) in best) for point in found]
    caption = "Methods by asked sparsity; bold: the best, where removed shares differ by a point at most"
    return Table(caption, columns, rows)


def quality_row(point: Point, measure: Measure, tasks: tuple[str, ...], best: bool) -> list[Cell]:
    value = point.spread(measure.read)
    return [
        word(point.method),
        share(point.sparsity),
        spread(value, best),
        number(value.mean / measure.dense, ".3f"),
        number(round(point.parameters), ",d"),
        *(share(point.removed(base)) for base in ("model", "blocks", "sites")),
        number(len(point.records), "d"),
        *(number(fmean(one.metrics["pruned"][task].value for one in point.records), ".4f") for task in tasks),
    ]
