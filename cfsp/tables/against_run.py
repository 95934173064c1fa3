"""Tables with a paired test of every cell: against one run, the dense model, or the best of its column."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cfsp.records.protocols import difference_words
from cfsp.records.record import Record
from cfsp.tables.compare import Comparison, comparisons
from cfsp.tables.frame import frame
from cfsp.tables.outcomed import BEST, DENSE, Outcomed
from cfsp.tables.paired import LEVEL, Paired, paired
from cfsp.tables.rivals import Rivals, best_runs, same_seeds, same_size

ALIKE, ITSELF, NOT_COMPARED = "≈", "≡", "?"
"""Marks beside a cell: it cannot be distinguished from the run that it is compared with; it is that run; or
it could not be compared."""


def marked_tables(
    records: Mapping[Path, Record],
    metric: str,
    rows: Callable[[Record], str] | str,
    columns: str = "sparsity",
    run: str = BEST,
) -> list[Comparison]:
    """Return the tables of a metric with the marks of `against_run`, for `render`.

    records: by the files that they were read from, as `read_records` returns them. rows: fields as in
    `comparisons`, or a function that names each record.
    """
    table = frame(records.values())
    if not isinstance(rows, str):
        names = {record.id: rows(record) for record in records.values()}
        table, rows = table.assign(method=table["id"].map(names)), "method"
    return [against_run(one, records, run) for one in comparisons(table, metric, rows, columns)]


def against_run(one: Comparison, records: Mapping[Path, Record], run: str) -> Comparison:
    """Return the table with `difference`, `low`, `high`, `p`, `flips` and `mark` of every cell.

    run: the id of a record, or its beginning; dense; or best, the best of each column.

    Raises:
        ValueError: no such run, or outcomes of different questions.
    """
    outcomes = Outcomed(records)
    run = outcomes.find(run)
    rivals = best_runs(one) if run == BEST else defaultdict(lambda: Rivals((run,)))
    columns: list[dict[str, object]] = []
    missed: Counter[str] = Counter()
    for cell in one.cells.to_dict("records"):
        row, column = (tuple(cell[name] for name in names) for names in (one.rows, one.columns))
        runs = one.runs[*row, *column]
        found = [pair for other in runs for pair in pairs_of(outcomes, rivals[column], other, one.metric)]
        missed.update(reason for reason in found if isinstance(reason, str))
        pairs = [pair for pair in found if isinstance(pair, Paired)]
        itself = not {*runs}.isdisjoint(rivals[column].runs)
        said = marks(pairs, itself, missed=len(found) - len(pairs))
        columns.append({**figures(pairs if len(runs) == len(pairs) == 1 else []), "mark": said})
    cells = pd.concat([one.cells, pd.DataFrame(columns, index=one.cells.index)], axis=1)
    why = [f"careful: {number} not compared: {reason}" for reason, number in missed.items()]
    return replace(one, cells=cells, notes=(*one.notes, *notes_on_marks(cells, run), *why))


def pairs_of(outcomes: Outcomed, rivals: Rivals, other: str, metric: str) -> list[Paired | str]:
    """Return how a run of a cell compares with its rivals, or why it does not; nothing for a rival itself.

    Of several rivals those count that have the seeds of the run.
    """
    if other in rivals.runs:
        return []
    chosen = rivals.runs
    if len(chosen) > 1:
        chosen = [run for run in chosen if same_seeds(outcomes.record(run), outcomes.record(other))]
    if not chosen:
        return [rivals.why_none or "the best of their column has no run of their seed"]
    return [pair_of(outcomes, run, other, metric) for run in chosen]


def pair_of(outcomes: Outcomed, run: str, other: str, metric: str) -> Paired | str:
    """Return how a run of a cell compares, or why it is not compared."""
    first, second = outcomes.of(run, metric, other), outcomes.of(other, metric)
    if (
        first.protocol
        and second.protocol
        and (apart := difference_words([first.protocol, second.protocol], "they"))
    ):
        return f"{run_words(run)} has another protocol: {apart}"
    if run != DENSE and not same_size(outcomes.record(run), outcomes.record(other)):
        return f"{run} has another size: the shares removed, or active, differ by more than a point"
    if second.outcomes is None:
        return "without outcomes of single questions or windows"
    if first.outcomes is None:
        return f"{run_words(run)} keeps no outcomes of single questions or windows"
    try:
        return paired(first.outcomes, second.outcomes)
    except ValueError as error:
        raise ValueError(f"{metric} of {run} and {other}: {error}") from error


def figures(pairs: list[Paired]) -> dict[str, float]:
    """Return the figures of a test; NaN unless there is one, because a test is of one run."""
    found: dict[str, float] = dict.fromkeys(("difference", "low", "high", "p", "flips"), math.nan)
    for pair in pairs:
        known = {name: getattr(pair, name) for name in found}
        found |= {name: value for name, value in known.items() if value is not None}
    return found


def marks(pairs: list[Paired], itself: bool, missed: int) -> str:
    """Return the marks of a cell; "" if all of its runs were compared and are distinguishable."""
    alike = not all(pair.distinguishable for pair in pairs)
    return ALIKE * alike + NOT_COMPARED * bool(missed) + ITSELF * itself


def run_words(run: str) -> str:
    return {DENSE: "the dense model", BEST: "the best of its column"}.get(run, run)


def notes_on_marks(cells: pd.DataFrame, run: str) -> list[str]:
    """Return what the marks of a table mean."""
    other, there = run_words(run), "".join(cells["mark"])
    notes = [
        f"{ALIKE}: not distinguishable from {other} on the same questions or windows (McNemar's exact test, "
        f"p ≥ {LEVEL:g}; or the {1 - LEVEL:.0%} interval of the mean difference over windows holds 0); "
        "no mark: distinguishable"
    ]
    if ITSELF in there:
        notes.append(f"{ITSELF}: {other} itself")
    if NOT_COMPARED in there:
        notes.append(f"{NOT_COMPARED}: not compared")
    if cells["n"].gt(1).any():
        seeds = "; runs of equal seeds are paired, or all with the only run of the best" * (run == BEST)
        notes.append(f"in a cell of several runs, a mark is of one of them at least{seeds}")
    return notes
