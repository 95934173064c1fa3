"""Summary: one record for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cfsp.record import Record, part_name


def summary(record: Record) -> Group:
    """Before and after, and a bar per site of what was kept."""
    parts = [before_and_after(record), kept_widths(record)]
    if record.training:
        parts.append(training_summary(record))
    if record.samples:
        parts.append(side_by_side(record))
    return Group(*parts)


def before_and_after(record: Record) -> Table:
    config = record.config
    title = " / ".join(part_name(config[part]) for part in ("criterion", "allocator", "compensation"))
    table = Table(
        "",
        "dense",
        "pruned",
        "change",
        title=escape(f"{config['model']['path']}: {title}"),
        title_justify="left",
    )
    for base, dense in record.parameters["dense"].items():
        pruned = record.parameters["pruned"][base]
        asked = f" (asked {config['sparsity']:.1%})" if base == config["sparsity_of"] else ""
        table.add_row(
            f"parameters of the {base}",
            f"{dense:,}",
            f"{pruned:,}",
            f"{-record.sparsity[base]:+.2%}{asked}",
        )
    for name, metric in record.metrics["pruned"].items():
        dense = record.metrics["dense"][name].value
        change = f"{metric.value / dense - 1:+.1%}" if dense else "-"
        mark = " *" if metric.protocol.get("papers") else ""
        table.add_row(escape(name) + mark, f"{dense:.4g}", f"{metric.value:.4g}", change)
    for warning in record.overlaps or []:
        table.add_row(f"[bold]careful:[/bold] {escape(warning)}", "", "", "")
    spent = {stage: seconds for stage, seconds in record.seconds.items() if seconds >= 0.05}
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in spent.items())
    peaks = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in record.peak_bytes.items())
    marked = any(metric.protocol.get("papers") for metric in record.metrics["pruned"].values())
    note = "* what the pruning papers report\n" if marked else ""
    table.caption = f"{note}{stages}; peak memory: {peaks}"
    return table


def training_summary(record: Record) -> Table:
    """What recovery cost, and the held-out loss as it went."""
    training = record.training
    table = Table("", "", title="Recovery", title_justify="left", show_header=False)
    table.add_row("trained", f"{training['trainable']:,} parameters on {training['tokens']:,} tokens")
    table.add_row("took", f"{training['steps']:,} steps, {training['seconds']:.0f} s")
    points = training["held_out_curve"] or training["curve"]
    if points:
        name = "held-out loss" if training["held_out_curve"] else "loss"
        losses = [point["loss"] for point in points]
        table.add_row(name, f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
    return table


def sparkline(values: list[float], width: int = 40) -> str:
    """A curve in one line: the lowest and the highest value are the lowest and the highest bar."""
    step = max(1, len(values) // width)
    picked = values[::step]
    low, high = min(picked), max(picked)
    marks = "▁▂▃▄▅▆▇█"
    return "".join(marks[round((one - low) / ((high - low) or 1) * (len(marks) - 1))] for one in picked)


def side_by_side(record: Record) -> Table:
    """What both models say."""
    table = Table("prompt", "dense", "pruned", title="Samples", title_justify="left", show_lines=True)
    for prompt, said in record.samples.items():
        table.add_row(*(Text(text) for text in (prompt, said["dense"], said["pruned"])))
    return table


def kept_widths(record: Record) -> Table:
    table = Table("site", "kept", "", "", title="What was kept", title_justify="left")
    for name, (units, kept) in record.widths.items():
        table.add_row(escape(name), f"{kept} of {units}", f"{kept / units:.0%}", bar(kept / units))
    return table


def bar(share: float, width: int = 24) -> str:
    """A share as a bar that fits a terminal of 80 columns beside the site's name."""
    filled = round(share * width)
    return "█" * filled + "░" * (width - filled)
