"""Records: everything that one run was and found, in one JSON file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from cfsp.machine.environment import is_main
from cfsp.records.fields import (
    Count,
    Environment,
    Finite,
    Git,
    NamedConfig,
    Notes,
    Protocol,
    Range,
    Said,
    Shares,
    Stages,
    Training,
    Width,
)
from cfsp.storage.atomic import replacing
from cfsp.storage.schema import parse, read_json
from cfsp.storage.seals import checksum


@dataclass(frozen=True)
class Metric:
    """One number with what it takes to compare it.

    stderr: None if unknown; n: what was averaged. spread: lowest and highest of n, of a median.
    """

    value: float
    stderr: float | None
    n: Count
    better: Literal["lower", "higher"]
    protocol: Protocol
    spread: Range | None = None


class Measured(TypedDict):
    """Metrics by name, of both models."""

    dense: Mapping[str, Metric]
    pruned: Mapping[str, Metric]


def has_pairs(metrics: Mapping[str, Mapping[str, Metric]]) -> bool:
    """Whether each metric of the pruned model is there of the dense one too."""
    return metrics["pruned"].keys() <= metrics["dense"].keys()


@dataclass(frozen=True)
class Record:
    """What one run was and found.

    parameters: "dense" and "pruned" -> sites, blocks, model. Of the sites: what their units take
    with them; biases that a compensation adds count in blocks and model.
    sparsity: measured share removed of each base. widths: site -> [units, kept].
    """

    id: str
    created: str
    config: NamedConfig
    parameters: Stages
    sparsity: Shares
    widths: Mapping[str, Width]
    unit_cost: Mapping[str, int]
    notes: Notes
    metrics: Annotated[
        Mapping[str, Mapping[str, Metric]],
        Measured,
        has_pairs,
        "a dense counterpart of each pruned metric",
    ]
    seconds: Mapping[str, Finite]
    peak_bytes: Mapping[str, int]
    git: Git | None
    environment: Environment
    command: str | None = None
    training: Training | None = None
    samples: Mapping[str, Said] | None = None  # by prompt
    overlaps: list[str] | None = None  # texts that the model is made with and measured on

    @property
    def trained(self) -> Mapping[str, Any]:
        """What recovery was and cost; empty if nothing was trained."""
        return self.training or {}

    def save(self, results: str | Path) -> Path:
        path = record_path(results, self.id)
        with replacing(path) as part:
            part.write_text(self.text())
        return path

    def text(self) -> str:
        """The record as JSON, with a checksum of its own."""
        data = asdict(self)
        return json.dumps(data | {"sha256": checksum(data)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record. Raises ValueError if the file is none, OSError if there is no reading it."""
        try:
            data = read_json(Path(path))
            written = data.pop("sha256", None) if isinstance(data, dict) else None  # older records have none
            if written is not None and written != checksum(data):
                raise ValueError("it was altered after it was written: its sha256 is another")
            return parse(cls, data)
        except ValueError as error:
            raise ValueError(f"{path}: no record of this version of cfsp ({error})") from error


def write_metrics(path: Path, metrics: Mapping[str, Metric]) -> None:
    path.write_text(json.dumps({name: asdict(metric) for name, metric in metrics.items()}, indent=1) + "\n")


def read_metrics(path: Path) -> dict[str, Metric]:
    """Read what `write_metrics` wrote. Raises ValueError if the file is anything else."""
    try:
        return dict(parse(Mapping[str, Metric], read_json(path)))
    except ValueError as error:
        raise ValueError(f"no metrics: {error}") from error


def make_folder(results: object) -> None:
    """Make the results folder now rather than after hours. Raises ValueError if that cannot be."""
    writable = False
    if isinstance(results, str | Path):
        with suppress(OSError):
            Path(results).mkdir(parents=True, exist_ok=True)
            writable = os.access(results, os.W_OK)
    if not writable:
        raise ValueError(f"results={results!r}: expected a folder that can be written")


def record_path(results: str | Path, record_id: str) -> Path:
    return Path(results) / "records" / f"{record_id}.json"


def read_finished(path: Path) -> Record | None:
    """The record at a path, if one is there; what is none of this run is set aside, and named on stderr."""
    if not path.exists():
        return None
    try:
        found = Record.load(path)
        if found.id != path.stem:
            raise ValueError(f"{path}: the record of another run, {found.id}")
        return found
    except ValueError as error:
        if is_main():
            aside = path.with_name(f"{path.name}.broken")
            os.replace(path, aside)
            print(f"cfsp: {error}; it is kept as {aside.name} and made anew", file=sys.stderr)
        return None


def records(folder: str | Path) -> Iterator[Record]:
    """All records in a folder, by file name. Raises ValueError at the first that is none."""
    for path in sorted(Path(folder).glob("*.json")):
        yield Record.load(path)
