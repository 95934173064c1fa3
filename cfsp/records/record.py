"""Records: the config, results and costs of one run, in one JSON file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypedDict

from cfsp.records.fields import (
    Count,
    Environment,
    Finite,
    Git,
    NamedConfig,
    Notes,
    OutcomesKept,
    Protocol,
    Range,
    RoutedSite,
    Said,
    Shares,
    Stages,
    Target,
    Training,
    Width,
)
from cfsp.records.outcomes import Outcomes
from cfsp.records.wanted import Wanted, wanted_of
from cfsp.storage.atomic import replacing
from cfsp.storage.schema import parse, read_json
from cfsp.storage.seals import as_read, checksum


@dataclass(frozen=True)
class Metric:
    """One measured value, with what is needed to compare it.

    stderr: None if unknown. n: how many values were averaged. spread: for a median, lowest and highest value.
    """

    value: float
    stderr: float | None
    n: Count
    better: Literal["lower", "higher"]
    protocol: Protocol
    """All of it, not a version number: two perplexities mostly differ by window, text and dtype."""
    spread: Range | None = None
    outcomes: Outcomes | None = field(default=None, compare=False, repr=False)
    """In memory and in the cache; a record names the file that keeps them."""


class Measured(TypedDict):
    """Metrics by name, of both models."""

    dense: Mapping[str, Metric]
    pruned: Mapping[str, Metric]


def has_pairs(metrics: Mapping[str, Mapping[str, Metric]]) -> bool:
    """Return whether the dense model has every metric of the pruned model."""
    return metrics["pruned"].keys() <= metrics["dense"].keys()


@dataclass(frozen=True)
class Record:
    """The config, results and costs of one run.

    parameters: "dense" and "pruned" -> numbers of parameters of the sites, the blocks and the model. Those
    of the sites go with their units; biases of a compensation count only in the blocks and the model.
    sparsity: measured fraction removed of each base. widths: site -> [units, kept].
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
    training: Training | None = None  # of recovery
    schedule_training: Training | None = None  # of a schedule that learns
    target: Target | None = None  # what was asked for instead of a sparsity, in bytes, MACs or parameters
    density: float | None = None  # fraction of the weights in the pruned model's blocks that are not zero
    samples: Mapping[str, Said] | None = None  # by prompt
    overlaps: list[str] | None = None  # evaluation texts that calibration or recovery reads too
    outcomes: OutcomesKept | None = None  # of each question and window
    dequantised: str | None = None  # type of the weights in the GGUF file that the model was read from
    routes: Mapping[str, RoutedSite] | None = None  # by site, of those whose units are chosen per token

    @property
    def wanted(self) -> Wanted:
        """What was asked for. A saved routed model that is only measured was asked for its active share."""
        active = self.notes.get("active")
        return wanted_of(self.config) if active is None else Wanted("active", -active)

    @property
    def routed(self) -> bool:
        """Whether the model's MLPs are routed, so that units are chosen per token and none is removed."""
        return bool(self.routes) or self.wanted.kind == "active"

    @property
    def active(self) -> float:
        """Share of a routed model's units that a token uses: the mean over what was measured, or as asked.

        1 for other models, NaN if it is not known.
        """
        found = self.metrics["pruned"].items()
        shares = [one.value for name, one in found if name.startswith("active_share/")]
        if shares:
            return fmean(shares)
        if not self.routed:
            return 1.0
        return self.wanted.amount if self.wanted.kind == "active" else nan

    @property
    def made(self) -> str:
        """What the run made of the dense model, as the heading of a column: pruned, or routed."""
        return "routed" if self.routed else "pruned"

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
        """Return the record as JSON, with its own checksum."""
        data = as_read(asdict(self))
        for metric in (one for metrics in data["metrics"].values() for one in metrics.values()):
            del metric["outcomes"]
        return json.dumps(data | {"sha256": checksum(data)}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record. Raises ValueError if the file is not one, OSError if it cannot be read."""
        try:
            data = read_json(Path(path))
            written = data.pop("sha256", None) if isinstance(data, dict) else None  # older records have none
            if written is not None and written != checksum(data):
                raise ValueError("it was altered after it was written: its sha256 does not match")
            return parse(cls, data)
        except ValueError as error:
            raise ValueError(f"{path}: no record of this version of cfsp ({error})") from error


def write_metrics(path: Path, metrics: Mapping[str, Metric]) -> None:
    path.write_text(json.dumps({name: asdict(metric) for name, metric in metrics.items()}, indent=1) + "\n")


def read_metrics(path: Path) -> dict[str, Metric]:
    """Read a file that `write_metrics` wrote. Raises ValueError if it is malformed."""
    try:
        return dict(parse(Mapping[str, Metric], read_json(path)))
    except ValueError as error:
        raise ValueError(f"no metrics: {error}") from error


def make_folder(results: object) -> None:
    """Create the results folder before the work. Raises ValueError if it cannot be written."""
    writable = False
    if isinstance(results, str | Path):
        with suppress(OSError):
            Path(results).mkdir(parents=True, exist_ok=True)
            writable = os.access(results, os.W_OK)
    if not writable:
        raise ValueError(f"results={results!r}: expected a folder that can be written")


def record_path(results: str | Path, record_id: str) -> Path:
    return Path(results) / "records" / f"{record_id}.json"


def set_aside(path: Path) -> None:
    """Rename a file at the path of a record that is not this run's record, and report it on stderr."""
    if not path.exists():
        return
    try:
        found = Record.load(path)
        if found.id != path.stem:
            raise ValueError(f"{path}: the record of another run, {found.id}")
    except ValueError as error:
        aside = path.with_name(f"{path.name}.broken")
        os.replace(path, aside)
        print(f"cfsp: {error}; it is kept as {aside.name} and made anew", file=sys.stderr)


def records(folder: str | Path) -> Iterator[Record]:
    """Yield all records in a folder, by file name. Raises ValueError at the first bad file."""
    for path in sorted(Path(folder).glob("*.json")):
        yield Record.load(path)
