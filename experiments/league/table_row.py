"""A row of a league table: the method, its sizes, the figure with its interval, its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cfsp.records.escapes import markdown_text
from cfsp.records.record import Metric, Record
from cfsp.tables.paired import Paired, student_factor

HEAD = """| method | asked | gone of all | figure | vs dense | plan minutes | peak GB | runs |
|---|---|---|---|---|---|---|---|"""

Rows = Sequence[Record]
Pairs = Mapping[tuple[str, str], Paired]
"""File of outcomes, whose name holds its checksum, and metric -> the comparison with the dense model."""


def table_row(method: str, asked: str, runs: Rows, name: str, pairs: Pairs) -> str:
    """Return a row of the runs of one method and size."""
    active = np.mean([record.active for record in runs])
    plans = [record.seconds["plan"] for record in runs if "plan" in record.seconds]
    peak = max((size for record in runs for size in record.peak_bytes.values()), default=0)
    known = [pairs.get((record.outcomes["file"], name)) if record.outcomes else None for record in runs]
    cells = [
        markdown_text(method),
        asked,
        f"{mean_gone(runs):.1%}" if active == 1 else f"{active:.1%} active",
        figure([record.metrics["pruned"][name] for record in runs], known[0]),
        against_dense(known),
        minutes(max(plans)) if plans else "-",
        f"{peak / 1e9:.1f}" if peak else "-",
        " ".join(f"`{record.id}`" for record in runs),
    ]
    return f"| {' | '.join(cells)} |"


def mean_gone(runs: Rows) -> float:
    return float(np.mean([record.sparsity["model"] for record in runs]))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.2f}" if seconds >= 0.6 else "<0.01"


def figure(metrics: Sequence[Metric], pair: Paired | None) -> str:
    """Return the mean over seeds ± its standard deviation; of one seed, the value with its 95 % interval.

    pair: the first seed's comparison with the dense model, which tells the number of its items.
    """
    values = np.array([metric.value for metric in metrics])
    mean, (first, *more) = float(values.mean()), metrics
    digits = 4 if mean < 2 else 2
    if more:
        return f"{mean:.{digits}f} ± {values.std(ddof=1):.{digits}f} (n={len(values)})"
    count = item_count(first) if pair is None else pair.n
    if first.stderr is None or count is None or count < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {student_factor(count) * first.stderr:.{digits}f}"


def item_count(metric: Metric) -> int | None:
    """Return the number of questions or windows that a figure is of; None if its protocol does not tell."""
    protocol = metric.protocol
    measure, window, stride = (protocol.get(key) for key in ("measure", "window", "stride"))
    if measure in ("zero_shot", "generation"):
        return metric.n
    if measure not in ("perplexity", "fidelity"):
        return None
    whole = (
        stride is None or stride == window - protocol["bos"]
    )  # without overlap only the first is not scored
    return metric.n // (window - 1 if whole else stride)


def against_dense(pairs: Sequence[Paired | None]) -> str:
    """Return the interval that spans those of the seeds; "-" if one of them keeps no outcomes."""
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return "-"
    lows, highs = [pair.low for pair in known], [pair.high for pair in known]
    ends = [end for end in (*lows, *highs) if end is not None]
    interval = f"{min(ends):+.4f} to {max(ends):+.4f}" if len(ends) == 2 * len(known) else "one item"
    return interval if all(pair.distinguishable for pair in known) else f"{interval} ≈"
