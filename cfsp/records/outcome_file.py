"""The file of a run's outcomes, beside its record, which names it with its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cfsp.records.fields import Finite
from cfsp.records.outcomes import Kind, Outcomes, items_name
from cfsp.records.record import Metric, Record
from cfsp.storage.atomic import parts_of, replacing
from cfsp.storage.schema import parse, read_json
from cfsp.storage.seals import file_checksum

FOLDER = "outcomes"


@dataclass(frozen=True)
class Kept:
    """The outcomes of one metric. items: a key of the file's `items`, because metrics share questions."""

    kind: Kind
    items: str
    values: list[Finite]


@dataclass(frozen=True)
class OutcomeFile:
    """What both models of a run did with every item, by metric."""

    record: str
    items: Mapping[str, list[str]]
    dense: Mapping[str, Kept]
    pruned: Mapping[str, Kept]

    @classmethod
    def of(cls, record: Record) -> OutcomeFile | None:
        """Return the outcomes that the record's metrics hold in memory; None if there are none."""
        items: dict[str, list[str]] = {}
        models = {model: kept_of(record.metrics[model], items) for model in ("dense", "pruned")}
        return cls(record.id, items, **models) if items else None

    @property
    def text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    def read(self, model: str, metric: str) -> Outcomes | None:
        """Return the outcomes of a metric of the "dense" or the "pruned" model, if it has any."""
        models: Mapping[str, Mapping[str, Kept]] = {"dense": self.dense, "pruned": self.pruned}
        kept = models[model].get(metric)
        return None if kept is None else Outcomes(kept.kind, self.items[kept.items], kept.values)

    def whole(self) -> OutcomeFile:
        """Return itself. Raises ValueError if a metric's items are missing or too many or few."""
        for model in ("dense", "pruned"):
            for metric, kept in getattr(self, model).items():
                if kept.items not in self.items:
                    raise ValueError(f"{model}.{metric}.items: {kept.items!r}; expected a key of `items`")
                self.read(model, metric)
        return self


def kept_of(metrics: Mapping[str, Metric], items: dict[str, list[str]]) -> dict[str, Kept]:
    """Return the outcomes of metrics by name, and add their items to `items`."""
    found = {}
    for name, metric in metrics.items():
        if metric.outcomes is not None:
            key = items_name(metric.outcomes.items)
            items[key] = metric.outcomes.items
            found[name] = Kept(metric.outcomes.kind, key, metric.outcomes.values)
    return found


def named_outcomes(record: Record) -> Record:
    """Return the record with the name and the checksum of the file that `write_outcomes` makes of it.

    A changed result gets another name, so that a record that is still on the disk keeps its own file.
    """
    found = OutcomeFile.of(record)
    if found is None:
        return record
    checksum = hashlib.sha256(found.text.encode()).hexdigest()
    return replace(record, outcomes={"file": f"{record.id}-{checksum[:12]}.json", "sha256": checksum})


def write_outcomes(results: Path, record: Record) -> None:
    """Write the file that a finished run's record names, if its metrics hold outcomes."""
    found = OutcomeFile.of(record)
    if found is not None and record.outcomes is not None:
        with replacing(results / FOLDER / record.outcomes["file"]) as part:
            part.write_text(found.text)


def read_outcomes(path: Path, record: Record) -> OutcomeFile:
    """Return the outcomes of a record that was read from `path`, in the folder `records` of its results.

    Raises:
        ValueError: the record names none, or the file is lost, altered or malformed.
    """
    if record.outcomes is None:
        raise ValueError(
            f"{path}: this record keeps no outcomes of single questions or windows; expected one of a newer "
            "run (overwrite=true makes it again)"
        )
    file = path.parent.parent / FOLDER / record.outcomes["file"]
    try:
        if file_checksum(file) != record.outcomes["sha256"]:
            raise ValueError("it was altered after it was written: its sha256 is not that of the record")
        return parse(OutcomeFile, read_json(file)).whole()
    except OSError as error:
        raise ValueError(f"{path} names {file}, which cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: no outcomes of {record.id} ({error})") from error


def outcome_files(results: Path, record_id: str) -> list[Path]:
    """Return the files of a run's outcomes: that of its record and older ones."""
    return [*(results / FOLDER).glob(f"{record_id}-*.json")]


def left_parts(results: Path, record_id: str) -> list[Path]:
    """Return what killed writes of a run's outcomes left."""
    hidden = (results / FOLDER).glob(f".{record_id}-*.json.*")
    whole = {one.with_name(one.name[1:].partition(".json.")[0] + ".json") for one in hidden}
    return [part for path in sorted(whole) for part in parts_of(path)]


def tidy_outcomes(results: Path, record: Record) -> None:
    """Delete outcomes that the record does not name, and what killed writes left."""
    for part in left_parts(results, record.id):
        part.unlink(missing_ok=True)
    for path in outcome_files(results, record.id):
        if record.outcomes is None or path.name != record.outcomes["file"]:
            path.unlink(missing_ok=True)
