"""Summary: a record or a sweep as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfsp.records.identity import method_name, part_name
from cfsp.records.record import Record
from cfsp.records.routed_words import asked_share, experts_text, measured_share, routed_method
from cfsp.report.paths import model_names
from cfsp.running.sweeps import Outcome, count_of

FULL = 0.9995
"""Density from which a model is shown as one without zeros: biases and unused embeddings hold some."""

ONCE = {"_target_": "cfsp.schedules.one_shot.OneShot"}
"""The schedule that a table's title does not name."""

UNCHANGED = "unchanged"
"""The method of a model that is measured as it is."""

WIDTH = 110
"""Characters per line if stdout is not a terminal."""


def summary(record: Record) -> Group:
    """Return a record's tables: before and after, a bar of the kept width per site, recovery, samples.

    Where routers choose the units for every token, all are kept, and there are no bars.
    """
    parts = [before_and_after(record)]
    if record.widths and not record.routed:
        parts.append(widths_table(record))
    for title, training in (("Schedule", record.schedule_training), ("Recovery", record.training)):
        if training:
            parts.append(training_summary(title, training))
    if record.samples:
        parts.append(side_by_side(record))
    return Group(*parts)


def before_and_after(record: Record) -> Table:
    path = str(record.config["model"]["path"])
    title = escape(f"{model_names([path])[path]}: {deciding_parts(record)}")
    alone = deciding_parts(record) == UNCHANGED and not record.training  # nothing to compare it with
    head = ("", "dense", UNCHANGED if alone else record.made, "change")
    table = Table(*(head[::2] if alone else head), title=title, title_justify="left")
    for row in table_rows(record):
        table.add_row(*(row[::2] if alone else row))
    spent = {stage: seconds for stage, seconds in record.seconds.items() if seconds >= 0.05}
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent.items())
    peaks = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in record.peak_bytes.items())
    marked = any(metric.protocol.get("papers") for metric in record.metrics["pruned"].values())
    note = "* what the pruning papers report\n" if marked else ""
    table.caption = f"{note}{stages}; peak memory: {peaks}"
    return table


def table_rows(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table on sizes and metrics: name, dense, after it, change."""
    yield from size_rows_of(record)
    if record.routed:
        yield from routed_rows(record)
    if record.density is not None and record.density < FULL:
        yield "weights of the blocks that are not zero", "", f"{record.density:.1%}", ""
    for name, metric in record.metrics["pruned"].items():
        dense = record.metrics["dense"][name].value
        if name.startswith("cut_") and dense == metric.value == 0:
            continue  # all was read and written in full
        change = f"{metric.value / dense - 1:+.1%}" if dense else "-"
        mark = " *" if metric.protocol.get("papers") else ""
        yield escape(name) + mark, f"{dense:.4g}", f"{metric.value:.4g}", change
    for warning in record.overlaps or []:
        yield f"[bold]careful:[/bold] {escape(warning)}", "", "", ""


def deciding_parts(record: Record) -> str:
    """Return the parts that decided, as a title."""
    if method_name(record.config) == UNCHANGED:
        return f"{UNCHANGED}; dense is the model without its routers" if record.routed else UNCHANGED
    if record.routed:
        return routed_method(record)
    config = record.config
    names = {part: part_name(config[part]) for part in ("criterion", "allocator", "compensation")}
    if (schedule := part_name(config.get("schedule", ONCE))) != part_name(ONCE):
        names = {"schedule": schedule} | names
    return ", ".join(f"{part} {name}" for part, name in names.items())


def routed_rows(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table on what tokens use of routed MLPs, with what was asked for."""
    asked, used = asked_share(record), measured_share(record) or "not measured"
    yield "units that a token uses", "100.0%", used, f"(asked {asked})" if asked else ""
    if record.routes:
        yield "routed MLPs", "0", str(len(record.routes)), f"{experts_text(record)} each"


def size_rows_of(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table on what was removed, with what was asked for. Routers add parameters."""
    wanted = record.wanted
    for base, dense in record.parameters["dense"].items():
        share = wanted.kind == "sparsity" and base == record.config["sparsity_of"]
        asked = f" (asked {wanted.amount:.1%})" if share else ""
        change = f"{-record.sparsity[base] + 0:+.2%}{asked}"  # minus zero becomes zero
        yield f"parameters of the {base}", f"{dense:,}", f"{record.parameters['pruned'][base]:,}", change
    if (target := record.target) is not None:
        change, table = target["reached"] / target["dense"] - 1, target.get("table")
        if table is None:
            name, (dense, reached) = "", (f"{target[one]:,.0f}" for one in ("dense", "reached"))
            predicted = ""
        else:  # seconds
            name, (dense, reached) = " (ms)", (f"{1000 * target[one]:.4g}" for one in ("dense", "reached"))
            predicted = f"; by the table {table['predicted'] / table['dense'] - 1:+.2%}"
        asked = f"(asked {wanted.text}{predicted})"
        yield f"target: {target['kind']}{name}", dense, reached, f"{change:+.2%} {asked}"


def training_summary(title: str, training: Mapping[str, Any]) -> Table:
    """Return the cost of a training and the curve of the held-out loss."""
    table = Table("", "", title=title, title_justify="left", show_header=False)
    table.add_row("trained", f"{training['trainable']:,} parameters on {training['tokens']:,} tokens")
    table.add_row("took", f"{training['steps']:,} steps, {training['seconds']:.0f} s")
    points = training["held_out_curve"] or training["curve"]
    if points:
        name = "held-out loss" if training["held_out_curve"] else "loss"
        losses = [point["loss"] for point in points]
        table.add_row(name, f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
    return table


def sparkline(values: list[float], width: int = 40) -> str:
    """Draw a curve in one line; its lowest and highest values are the lowest and highest bars."""
    step = max(1, len(values) // width)
    picked = values[::step]
    low, high = min(picked), max(picked)
    marks = "▁▂▃▄▅▆▇█"
    return "".join(marks[round((one - low) / ((high - low) or 1) * (len(marks) - 1))] for one in picked)


def side_by_side(record: Record) -> Table:
    """Return both models' continuations of the prompts."""
    table = Table("prompt", "dense", record.made, title="Samples", title_justify="left", show_lines=True)
    for prompt, said in (record.samples or {}).items():
        table.add_row(*(Text(text) for text in (prompt, said["dense"], said["pruned"])))
    return table


def widths_table(record: Record) -> Table:
    table = Table("site", "kept", "", "", title="What was kept", title_justify="left")
    for name, (units, kept) in record.widths.items():
        table.add_row(escape(name), f"{kept} of {units}", f"{kept / units:.0%}", share_bar(kept / units))
    return table


def share_bar(share: float, width: int = 24) -> str:
    """Draw a fraction as a bar that fits a terminal of 80 columns beside the site's name."""
    filled = round(share * width)
    return "█" * filled + "░" * (width - filled)


def show_record(record: Record) -> None:
    """Print a record to stdout."""
    console().print(summary(record))


def show_sweep(found: Sequence[Outcome], results: str) -> None:
    """Print the table of a sweep to stdout."""
    if found:
        console().print(sweep_summary(found, results))


def console() -> Console:
    """Return stdout as a console; if it is not a terminal, wide enough for names."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def outcome_of(record: Record, path: Path, made: bool) -> Outcome:
    """Return the outcome of a job with this record."""
    name = next(iter(record.metrics["pruned"]), None)
    return Outcome(
        state="made" if made else "read",
        file=str(path),
        removed=record.sparsity["model"],
        active=record.active if record.routed else None,
        metric=name,
        dense=None if name is None else record.metrics["dense"][name].value,
        pruned=None if name is None else record.metrics["pruned"][name].value,
    )


def sweep_summary(found: Sequence[Outcome], results: str) -> Group:
    """Return a table of all jobs of a sweep, and the command that shows more."""
    metrics = dict.fromkeys(one.metric for one in found if one.metric)
    table = Table(
        "job", "removed", *metrics, "", title=f"{len(found)} jobs: {count_of(found)}", title_justify="left"
    )
    for one in found:
        values = (f"{one.pruned:.4g}" if one.metric == metric else "-" for metric in metrics)
        table.add_row(Text(one.name), one.size, *values, one.state)
    dense = {one.metric: f"{one.dense:.4g}" for one in found if one.metric}
    if dense:
        table.caption = "dense: " + ", ".join(f"{metric} {value}" for metric, value in dense.items())
    failed = [Text(f"{one.name}: {one.error} ({one.file})") for one in found if one.state == "failed"]
    more = Text(f"cfsp-tables {results}/records compares them, cfsp-report {results}/records draws them")
    return Group(table, *failed, more)
