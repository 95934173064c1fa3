"""Tables with a paired test of every cell against one run, or against the dense model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cfsp.records.outcome_file import OutcomeFile, read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.protocols import differing
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

    def differing(self, run: str, one: Comparison) -> tuple[str, ...]:
        """Return the keys in which a run's protocol of a table's metric differs from the table's."""
        measured = {} if run == DENSE else self.places[run][1].metrics["pruned"]
        return differing([measured[one.metric].protocol, one.protocol]) if one.metric in measured else ()


def against_run(one: Comparison, table: pd.DataFrame, records: Mapping[Path, Record], run: str) -> Comparison:
    """Return the table with `difference`, `low`, `high`, `p`, `flips` and `mark` of every cell.

    table: the frame that the comparison was made of. run: the id of a record, or its beginning; or dense.

    Raises:
        ValueError: no such run, or outcomes of different questions.
    """
    outcomes = Outcomed(records)
    run = outcomes.find(run)
    columns: list[dict[str, object]] = []
    lacking = 0
    if apart := outcomes.differing(run, one):
        other = f"not compared with {run}: its protocol differs in {', '.join(apart)}"
        return replace(one, notes=(*one.notes, other))
    runs = runs_of(one, table)
    for cell in one.cells.to_dict("records"):
        ids = [
            other for other in runs.get(tuple(cell[field] for field in fields_of(one)), []) if other != run
        ]
        pairs = [pair for other in ids if (pair := pair_of(outcomes, run, other, one.metric))]
        lacking += len(ids) - len(pairs)
        columns.append(figures(pairs))
    cells = pd.concat([one.cells, pd.DataFrame(columns, index=one.cells.index)], axis=1)
    notes = [note(run)]
    if lacking:
        notes.append(f"careful: {lacking} without outcomes of single questions or windows, not compared")
    return replace(one, cells=cells, notes=(*one.notes, *notes))


def fields_of(one: Comparison) -> list[str]:
    return [*one.rows, *one.columns]


def runs_of(one: Comparison, table: pd.DataFrame) -> dict[tuple[object, ...], list[str]]:
    """Return the values of a cell's fields -> the ids of its runs."""
    own = table[(table["metric"] == one.metric) & table["id"].isin(one.runs)]
    known = own[fields_of(one)].astype(object)
    said = known.where(known.notna(), "-")
    found: dict[tuple[object, ...], list[str]] = {}
    for values, run in zip(said.itertuples(index=False, name=None), own["id"], strict=True):
        found.setdefault(tuple(values), []).append(run)
    return found


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
