"""The overview: counts, best methods, protocols, unreadable files and failed runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfsp.records.failures import Failure
from cfsp.records.record import Record
from cfsp.report.base import (
    ACTIVE,
    MISSING,
    Cell,
    Section,
    Table,
    asked,
    details,
    in_common,
    measured,
    number,
    protocol_text,
    share,
    spread,
    used,
    word,
)
from cfsp.report.groups import Contest, Measure, Point, by_model, contests, points
from cfsp.report.paths import hide_paths
from cfsp.report.runs import minute


@dataclass(frozen=True)
class Compared:
    """The records of one study with their names and measures. missing: figures without data."""

    title: str
    records: Sequence[Record]
    names: Mapping[str, str]
    measures: Sequence[Measure]
    missing: Sequence[str]


def overview_section(
    groups: Sequence[Compared], failures: Sequence[Failure], unreadable: Sequence[str]
) -> Section:
    records = [record for group in groups for record in group.records]
    facts = {
        "runs": len(records),
        "dense models": len(by_model(records)),
        "methods": len({name for group in groups for name in group.names.values()}),
        "failed runs": len(failures),
        "unreadable files": len(unreadable),
    }
    tables = [glance_table(groups), protocol_table(groups), code_table(records)]
    if failures:
        tables.append(failure_table(failures, {record.id for record in records}))
    notes = [f"Could not be read: {hide_paths(problem)}" for problem in unreadable]
    of_routed = (
        "Of routed models nothing is removed: a token uses the active share of their MLPs' units. "
        if any(record.routed for record in records)
        else ""
    )
    intro = (
        "Sparsity is the share that is removed. Methods differ in what they count, so compare them by "
        "the measured parameters, not by the sparsity they were asked for. "
        f"{of_routed}{unmeasured(groups)}"
    ).rstrip()
    return Section("overview", "Overview", "", intro, facts, tables=tables, notes=notes)


def unmeasured(groups: Sequence[Compared]) -> str:
    """Return a sentence for each set of missing figures. It names the studies unless all lack the set."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        if group.missing:
            lacking.setdefault(tuple(group.missing), []).append(group.title)
    told = []
    for missing, titles in lacking.items():
        where = "" if len(titles) == len(groups) else f" of {' and of '.join(titles)}"
        told.append(f"Not measured{where}: {', '.join(missing)}.")
    return " ".join(told)


def glance_table(groups: Sequence[Compared]) -> Table:
    """List the best method of each measure, asked and measured share, or the reason why there is none."""
    routed = any(record.routed for group in groups for record in group.records)
    columns = {
        "study": "the dense model, and what is measured where that takes two",
        "measured": "of what the best is shown",
        "asked": "sparsity asked for" + (", or active share" if routed else ""),
        "best method": f"by the mean over its runs, among several that {in_common(routed)}",
        "value": "mean ± standard deviation over runs",
        "dense": "the dense model's value",
        "removed": "measured share of all parameters",
        **(ACTIVE if routed else {}),
        "runs": "records that the mean is of",
    }
    rows = [
        [word(group.title), word(measured(measure.title)), asked(contest.wanted), *cells]
        for group in groups
        for measure in group.measures
        for contest in contests(points(measure.records, group.names), measure)
        for cells in glance_cells(contest, measure, routed)
    ]
    what = "sparsity or active share" if routed else "sparsity"
    among = f"methods that {in_common(routed)} (to a point)"
    caption = f"At a glance: the best of each asked {what} among {among}"
    return Table(caption, columns, rows)


def glance_cells(contest: Contest, measure: Measure, routed: bool) -> list[list[Cell]]:
    """Return the last cells of each best method's row, or of one row with the reason why none is best."""
    runs = number(sum(len(point.records) for point in contest.points), "d")

    def sizes(point: Point) -> list[Cell]:
        return [share(point.removed("model")), *([used(point.active)] if routed else [])]

    first = sizes(contest.points[0])
    lone = first if len(contest.points) == 1 else [MISSING] * len(first)
    none = [word(f"– ({contest.why_none})"), MISSING, number(measure.dense), *lone, runs]
    return [
        [
            word(point.method),
            spread(point.spread(measure.read)),
            number(measure.dense),
            *sizes(point),
            number(len(point.records), "d"),
        ]
        for point in contest.best
    ] or [none]


def protocol_table(groups: Sequence[Compared]) -> Table:
    columns = {
        "study": "the dense model, and what is measured where that takes two",
        "parameters": "",
        "measured": "",
        "runs": "",
        "protocol": "what it depends on",
    }
    rows = [
        [
            word(group.title),
            number(group.records[0].parameters["dense"]["model"], ",d"),
            word(measured(measure.title)),
            number(len(measure.records), "d"),
            word(
                ", ".join(
                    f"{key} {protocol_text(key, value)}"
                    for key, value in measure.protocol.items()
                    if value is not None
                )
            ),
        ]
        for group in groups
        for measure in group.measures
    ]
    return Table("Dense models and protocols; others never share an axis", columns, rows)


def code_table(records: Sequence[Record]) -> Table:
    columns = {
        "code": "commit of cfsp; – where cfsp was installed and not run from a checkout",
        "state": "whether files differed from the commit; unknown without one",
        **dict.fromkeys(("cfsp", "torch", "transformers"), "version"),
        "device": "",
        "runs": "",
    }
    found = Counter(code_and_machine(record) for record in records)
    rows = [[*map(word, code), number(count, "d")] for code, count in sorted(found.items())]
    return Table("Code and machines", columns, rows)


def code_and_machine(record: Record) -> tuple[str, ...]:
    """Return commit, state, versions and device."""
    versions = record.environment.get("versions", {})
    state = "unknown" if record.git is None else ("changed" if record.git["dirty"] else "clean")
    return (
        "–" if record.git is None else record.git["commit"][:12],
        state,
        *(str(versions.get(package) or "–") for package in ("cfsp", "torch", "transformers")),
        str(record.environment.get("device", "–")),
    )


def failure_table(failures: Sequence[Failure], finished: set[str]) -> Table:
    columns = {"id": "hash of the config", "created": "UTC", "finished since": "", "error": "", "config": ""}
    texts = [details(one) for one in failures]
    rows = [
        [
            word(failure.id),
            word(minute(failure.created)),
            word("yes" if failure.id in finished else "no"),
            word(failure.said),
            Cell("show", details=text),
        ]
        for failure, text in zip(failures, texts, strict=True)
    ]
    return Table("Failed runs", columns, rows)
