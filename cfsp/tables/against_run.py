"""Tables with a paired test of every cell against one run, or against the dense model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cfsp.records.outcome_file import OutcomeFile, read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Record
from cfsp.tables.compare import Comparison
from cfsp.tables.paired import LEVEL, MARK, Paired, paired, several

DENSE = "dense"


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

    def of(self, run: str, metric: str, beside: str = "") -> Outcomes | None:
        """Return a run's outcomes of a metric. beside: the run whose dense model "dense" is."""
        record_id, model = (beside, DENSE) if run == DENSE else (run, "pruned")
        if record_id not in self._read:
            path, record = self.places[record_id]
            self._read[record_id] = read_outcomes(path, record) if record.outcomes else None
        file = self._read[record_id]
        return None if file is None else file.read(model, metric)


def against_run(one: Comparison, records: Mapping[Path, Record], run: str) -> Comparison:
    """Return the table with `difference`, `low`, `high`, `p`, `flips` and `mark` of every cell.

    run: the id of a record, or its beginning; or dense.

    Raises:
        ValueError: no such run, or outcomes of different questions.
    """
    outcomes = Outcomed(records)
    run = outcomes.find(run)
    columns: list[dict[str, object]] = []
    lacking = 0
    for cell in one.cells.to_dict("records"):
        runs = one.runs[tuple(cell[name] for name in (*one.rows, *one.columns))]
        ids = [other for other in runs if other != run]
        pairs = [pair for other in ids if (pair := pair_of(outcomes, run, other, one.metric))]
        lacking += len(ids) - len(pairs)
        columns.append(figures(pairs))
    cells = pd.concat([one.cells, pd.DataFrame(columns, index=one.cells.index)], axis=1)
    notes = [note(run)]
    if lacking:
        notes.append(f"careful: {lacking} without outcomes of single questions or windows, not compared")
    return replace(one, cells=cells, notes=(*one.notes, *notes))


def pair_of(outcomes: Outcomed, run: str, other: str, metric: str) -> Paired | None:
    """Return how a run of a cell compares; None if one of both keeps no outcomes."""
    first, second = outcomes.of(run, metric, other), outcomes.of(other, metric)
    if first is None or second is None:
        return None
    try:
        return paired(first, second)
    except ValueError as error:
        raise ValueError(f"{metric} of {run} and {other}: {error}") from error


def figures(pairs: list[Paired]) -> dict[str, object]:
    """Return the columns of a cell. Several runs have a mark only: a test is of one run."""
    blank: dict[str, object] = dict.fromkeys(("difference", "low", "high", "p", "flips"), math.nan)
    if len(pairs) == 1:
        (pair,) = pairs
        found = {name: getattr(pair, name) for name in blank}
        blank |= {name: value for name, value in found.items() if value is not None}
    return blank | {"mark": several(pairs) if pairs else ""}


def note(run: str) -> str:
    """Return what the mark means."""
    other = "the dense model" if run == DENSE else run
    return (
        f"{MARK}: not distinguishable from {other} on the same questions or windows (McNemar's exact test, "
        f"p ≥ {LEVEL:g}; or the {1 - LEVEL:.0%} interval of the mean difference over windows holds 0)"
    )
