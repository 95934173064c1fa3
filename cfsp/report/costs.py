"""Sections on time: latency and recovery."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from cfsp.records.record import Record
from cfsp.report.base import MISSING, Cell, Plot, Section, Table, asked, measured, number, spread, word
from cfsp.report.groups import Measure, Point, Spread, key_of, points
from cfsp.report.plots.base import Look
from cfsp.report.plots.latency import latency_by_size, quality_by_latency
from cfsp.report.plots.recovery import recovery_curves, schedule_curves
from cfsp.report.plots.sites_and_sources import source_weights_by_round

SHAPE = ("batch", "prompt")


def by_clock(measures: Sequence[Measure]) -> list[list[Measure]]:
    """Group latencies by their protocol without the input's shape. Each shape has its own panel."""
    groups = defaultdict(list)
    for measure in measures:
        groups[key_of({key: value for key, value in measure.protocol.items() if key not in SHAPE})].append(
            measure
        )
    return [groups[key] for key in sorted(groups)]


def latency_section(
    measures: Sequence[Measure],
    qualities: Sequence[Measure],
    model: str,
    section_id: str,
    names: Mapping[str, str],
    styles: Mapping[str, Look],
) -> Section:
    """Plot latency against size, and quality against the latency of decoding one token."""
    figure = latency_by_size(measures, names, styles)
    caption = (
        "Mean over runs of the median round; bars are the range of all rounds. "
        "Grey: what nothing beats in both. The star is the dense model, timed in turns with each."
    )
    plots = [Plot(section_id, figure, "Latency against measured parameters", caption)]
    decode = next((one for one in measures if one.title.startswith("decode")), measures[0])
    timed = {record.id for record in decode.records}
    for place, quality in enumerate(qualities, start=1):
        if any(record.id in timed for record in quality.records):
            drawn = quality_by_latency(quality, decode, names, styles)
            label = f"{measured(quality.title)} against {decode.title}"
            plots.append(Plot(f"{section_id}-{place}", drawn, label, "Grey: what nothing beats in both."))
    protocol = {key: value for key, value in measures[0].protocol.items() if key not in SHAPE}
    intro = "Milliseconds of a prompt (prefill) and of a token of all sequences (decode); less is better."
    return Section(section_id, "Latency", model, intro, protocol, plots, [latency_table(measures, names)])


def latency_table(measures: Sequence[Measure], names: Mapping[str, str]) -> Table:
    columns = {"method": "", "asked": "sparsity asked for", "parameters": "measured, whole model"}
    columns |= {"shape": "what is timed: stage, batch x prompt", "ms": "milliseconds", "speed-up": "of dense"}
    rows = []
    for measure in measures:
        speedup = measure.names[0].replace("_ms/", "_speedup/")
        for point in points(measure.records, names):
            rows.append(
                [
                    word(point.method),
                    asked(point.wanted),
                    number(round(point.parameters), ",d"),
                    word(measure.title),
                    spread(point.spread(measure.read)),
                    speed(point, speedup),
                ]
            )
    return Table("Latency, and speed-up over the dense model timed in turns", columns, rows)


def speed(point: Point, name: str) -> Cell:
    """Return a point's mean speed-up. It is missing if one of the runs has none."""
    metrics = [record.metrics["pruned"].get(name) for record in point.records]
    values = [one.value for one in metrics if one is not None]
    return spread(Spread.of(values)) if len(values) == len(metrics) else MISSING


def recovery_section(
    records: Sequence[Record],
    model: str,
    section_id: str,
    names: Mapping[str, str],
    styles: Mapping[str, Look],
) -> Section:
    """Plot recovery curves, one figure per objective and data, because other losses are not comparable."""
    groups = defaultdict(list)
    for record in records:
        config = record.config["recovery"]
        groups[key_of([config.get("objective"), config.get("data")])].append(record)
    plots = []
    for place, key in enumerate(sorted(groups), start=1):
        name = section_id if len(groups) == 1 else f"{section_id}-{place}"
        found = groups[key]
        objective = found[0].config["recovery"].get("objective", {}).get("_target_", "").rsplit(".", 1)[-1]
        caption = f"Objective: {objective}. A line per run."
        label = f"Recovery curves, {objective}"
        plots.append(Plot(name, recovery_curves(found, names, styles), label, caption))
    plots += source_plots([record for record in records if record.trained.get("rounds")], section_id, names)
    intro = "The loss as recovery trains; the best model on held-out examples counts."
    return Section(section_id, "Recovery", model, intro, {}, plots, [recovery_table(records, names)])


def source_plots(records: Sequence[Record], section_id: str, names: Mapping[str, str]) -> list[Plot]:
    """Plot the rounds of dynamic recovery, one figure per method and asked sparsity. All records have rounds.

    A method is a whole config without its seeds, so recoveries with other options have figures of their own.
    """
    found, plots = points(records, names), []
    for place, point in enumerate(found, start=1):
        name = f"{section_id}-sources" if len(found) == 1 else f"{section_id}-sources-{place}"
        label = f"Sources of dynamic recovery, by round: {point.method}, {point.wanted.text} asked"
        runs = "One run" if len(point.records) == 1 else f"Mean over {len(point.records)} runs"
        caption = f"{runs}; rounds of a stage are counted from 1. Left: what a round drew; right: why."
        plots.append(Plot(name, source_weights_by_round(point.records), label, caption))
    return plots


MASKS = (
    "Trained masks",
    "share removed",
    "The loss while masks close, and the share of the sites that they remove; then the model is cut.",
)
ROUTERS = (
    "Trained routers",
    "share not used",
    "The loss while routers learn, and the share that tokens do not use. No weight is removed.",
)
"""Title, the share that the figure shows, and what happens, for schedules that train."""


def schedule_section(
    what: tuple[str, str, str],
    records: Sequence[Record],
    model: str,
    section_id: str,
    names: Mapping[str, str],
    styles: Mapping[str, Look],
) -> Section:
    """Plot the training of schedules. what: `MASKS` or `ROUTERS`."""
    title, share, intro = what
    figure = schedule_curves(records, names, styles, share)
    plot = Plot(section_id, figure, f"Curves: {title.lower()}", "A line per run.")
    return Section(section_id, title, model, intro, {}, [plot], [])


def recovery_table(records: Sequence[Record], names: Mapping[str, str]) -> Table:
    columns = {"method": "", "asked": "sparsity asked for", "runs": "records that the mean is of"}
    fields = {
        "trainable": "parameters that are trained",
        "tokens": "tokens seen",
        "steps": "optimizer steps",
        "seconds": "of training",
    }
    rows = [
        [
            word(point.method),
            asked(point.wanted),
            number(len(point.records), "d"),
            *(spread(point.spread(lambda one, key=key: one.trained[key])) for key in fields),
        ]
        for point in points(records, names)
    ]
    return Table("What recovery cost", columns | fields, rows)
