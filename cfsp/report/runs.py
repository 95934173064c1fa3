"""The section that lists every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cfsp.records.protocols import comparable
from cfsp.records.record import Metric, Record
from cfsp.report.base import (
    ACTIVE,
    MISSING,
    Cell,
    Section,
    Table,
    asked,
    details,
    finite,
    number,
    share,
    used,
    word,
)
from cfsp.report.groups import key_of

COLUMNS = {
    "id": "hash of the config; the file's name",
    "method": "the shortest name that tells the methods apart",
    "seed": "of the run",
    "asked": "sparsity asked for",
    "of": "the base of the asked sparsity",
    "sites": "measured share removed of the chosen sites",
    "blocks": "measured share removed of all blocks",
    "model": "measured share removed of all parameters",
    "parameters": "measured parameters of the whole model",
}
LAST = {"seconds": "of all stages", "created": "UTC", "code": "commit; + if it was changed", "config": ""}


def runs_section(records: Sequence[Record], model: str, section_id: str, names: Mapping[str, str]) -> Section:
    """Return a section with a row per record and all its metrics."""
    metrics = metric_columns(records)
    routed = any(record.routed for record in records)
    asked_and_used = {"asked": "sparsity or active share asked for"} | ACTIVE if routed else {}
    columns = COLUMNS | asked_and_used | {name: f"{key[0]}, {key[1]}" for key, name in metrics.items()} | LAST
    rows = [run_row(record, names[record.id], metrics, routed) for record in records]
    caption = f"{len(records)} runs with all their metrics"
    intro = "Every record as it stands on disk. A heading sorts; the last column opens the whole config."
    return Section(section_id, "All runs", model, intro, {}, tables=[Table(caption, columns, rows)])


def metric_columns(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """Return (metric, protocol) -> heading: the metric's name, numbered if it has several protocols."""
    keys = {
        (name, key_of(comparable(metric.protocol))): None
        for record in records
        for name, metric in record.metrics["pruned"].items()
    }
    protocols: dict[str, list[str]] = {}
    for name, protocol in sorted(keys):
        protocols.setdefault(name, []).append(protocol)
    return {
        (name, protocol): name if len(found) == 1 else f"{name} (protocol {place})"
        for name, found in protocols.items()
        for place, protocol in enumerate(found, start=1)
    }


def run_row(record: Record, method: str, metrics: Mapping[tuple[str, str], str], routed: bool) -> list[Cell]:
    config = record.config
    own = {(name, key_of(comparable(one.protocol))): one for name, one in record.metrics["pruned"].items()}
    return [
        word(record.id),
        word(method),
        number(config["seed"], "d"),
        asked(record.wanted),
        word(config["sparsity_of"]),
        *(share(record.sparsity[base]) for base in ("sites", "blocks", "model")),
        number(record.parameters["pruned"]["model"], ",d"),
        *([used(record.active)] if routed else []),
        *(metric_cell(own.get(key)) for key in metrics),
        number(sum(record.seconds.values()), ".1f"),
        word(minute(record.created)),
        word(commit_of(record)),
        Cell("show", details=details(record)),
    ]


def metric_cell(metric: Metric | None) -> Cell:
    if metric is None:
        return MISSING
    error = "" if metric.stderr is None else f" ± {metric.stderr:.2g}"
    return Cell(f"{metric.value:,.5g}{error}", finite(metric.value))


def minute(created: str) -> str:
    """Return an ISO time, cut to the minute."""
    return created[:16].replace("T", " ")


def commit_of(record: Record) -> str:
    """Return the commit that made a record, with a plus if files differed from it."""
    if record.git is None:
        return f"cfsp {record.environment.get('versions', {}).get('cfsp')}"
    return record.git["commit"][:8] + ("+" if record.git["dirty"] else "")
