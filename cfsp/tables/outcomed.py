"""The outcomes of records, for tables that compare runs pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cfsp.records.outcome_file import OutcomeFile, read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Record

DENSE, BEST = "dense", "best"
"""What a run is called that is a dense model, and one that is the best of its column."""


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
        """Return the id with this beginning; dense and best as they are. Raises ValueError for other text."""
        if run in (DENSE, BEST):
            return run
        found = [one for one in self.places if one.startswith(run)]
        if len(found) != 1:
            some = ", ".join([*self.places][:8])
            raise ValueError(
                f"--against {run!r}: {len(found)} records; expected dense, best, or the id of one: {some}"
            )
        return found[0]

    def record(self, run: str) -> Record:
        return self.places[run][1]

    def of(self, run: str, metric: str, beside: str = "") -> MetricOutcomes:
        """Return what a run did for a metric. beside: the run whose dense model "dense" is."""
        record_id, model = (beside, DENSE) if run == DENSE else (run, "pruned")
        path, record = self.places[record_id]
        if record_id not in self._read:
            self._read[record_id] = read_outcomes(path, record) if record.outcomes else None
        measured = record.metrics[model].get(metric)
        file = self._read[record_id]
        return MetricOutcomes(measured and measured.protocol, file and file.read(model, metric))
