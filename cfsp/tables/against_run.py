"""Tables with a paired test of every cell against one run, or against the dense model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cfsp.records.outcome_file import OutcomeFile, read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.protocols import differing
from cfsp.records.record import Record
from cfsp.tables.compare import Comparison
from cfsp.tables.paired import LEVEL, Paired, paired

DENSE = "dense"
ALIKE, ITSELF, NOT_COMPARED = "≈", "≡", "?"
"""Marks beside a cell: it cannot be distinguished from the run that it is compared with; it is that run; or
it could not be compared."""


class MetricOutcomes(NamedTuple):
    """What a model did for a metric; None where it was not measured, or no outcomes are kept."""

    protocol: Mapping[str, Any] | None
    outcomes: Outcomes | None


class Outcomed:
    """The outcomes of records, read when they are asked for."""

    def __init__(self, records: Mapping[Path, Record]) -> None:
        self.places = {record.id: (path, record) for path, record in records.items()}
        self._read: dict[str, OutcomeFile | None] = {}

    def find(self, run: str) -> str:
        """Return the id that a beginning of it means, or "dense". Raises ValueError unless there is one."""
        if run == DENSE:
            return run
        found = [one for one in self.places if one.startswith(run)]
        if len(found) != 1:
            some = ", ".join([*self.places][:8])
            raise ValueError(
                f"--against {run!r}: {len(found)} records; expected dense, or the id of one: {some}"
            )
        return found[0]

    def of(self, run: str, metric: str, beside: str = "") -> MetricOutcomes:
        """Return what a run did for a metric. beside: the run whose dense model "dense" is."""
        record_id, model = (beside, DENSE) if run == DENSE else (run, "pruned")
        path, record = self.places[record_id]
        if record_id not in self._read:
            self._read[record_id] = read_outcomes(path, record) if record.outcomes else None
        measured = record.metrics[model].get(metric)
        file = self._read[record_id]
        return MetricOutcomes(measured and measured.protocol, file and file.read(model, metric))


def against_run(one: Comparison, records: Mapping[Path, Record], run: str) -> Comparison:
    """Return the table with `difference`, `low`, `high`, `p`, `flips` and `mark` of every cell.

    run: the id of a record, or its beginning; or dense.

    Raises:
        ValueError: no such run, or outcomes of different questions.
    """
    outcomes = Outcomed(records)
    run = outcomes.find(run)
    columns: list[dict[str, object]] = []
    missed: Counter[str] = Counter()
    for cell in one.cells.to_dict("records"):
        runs = one.runs[tuple(cell[name] for name in (*one.rows, *one.columns))]
        found = [pair_of(outcomes, run, other, one.metric) for other in runs if other != run]
        missed.update(reason for reason in found if isinstance(reason, str))
        pairs = [pair for pair in found if isinstance(pair, Paired)]
        said = marks(pairs, itself=run in runs, missed=len(found) - len(pairs))
        columns.append({**figures(pairs if len(runs) == 1 else []), "mark": said})
    cells = pd.concat([one.cells, pd.DataFrame(columns, index=one.cells.index)], axis=1)
    why = [f"careful: {number} not compared: {reason}" for reason, number in missed.items()]
    return replace(one, cells=cells, notes=(*one.notes, *notes_on_marks(cells, run), *why))


def pair_of(outcomes: Outcomed, run: str, other: str, metric: str) -> Paired | str:
    """Return how a run of a cell compares, or why it is not compared."""
    first, second = outcomes.of(run, metric, other), outcomes.of(other, metric)
    if first.protocol and second.protocol and (apart := differing([first.protocol, second.protocol])):
        return f"{run_words(run)} has another protocol: {', '.join(apart)}"
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
    return "the dense model" if run == DENSE else run


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
        notes.append("in a cell of several runs, a mark is of one of them at least")
    return notes
