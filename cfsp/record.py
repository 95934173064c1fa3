"""Records: everything that one run was and found, in one JSON file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch

from cfsp.atomic import replacing
from cfsp.fields import (
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
from cfsp.schema import parse, read_json
from cfsp.seals import checksum

PACKAGES = tuple(
    "cfsp torch transformers tokenizers datasets hydra-core numpy peft accelerate lm-eval wandb".split()
)

NOT_IDENTITY = ("results", "cache", "overwrite", "device", "logger", "save", "push", "private", "plugins")
"""Parts of the config that say where and how a run happens, not what it computes."""


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
    metrics: Annotated[Measured, has_pairs, "a dense counterpart of each pruned metric"]
    seconds: Mapping[str, Finite]
    peak_bytes: Mapping[str, int]
    git: Git | None
    environment: Environment
    command: str | None = None
    training: Training | None = None
    samples: Mapping[str, Said] | None = None  # by prompt
    overlaps: list[str] | None = None  # texts that the model is made with and measured on

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
        return parse(Mapping[str, Metric], read_json(path))
    except ValueError as error:
        raise ValueError(f"no metrics: {error}") from error


def is_main() -> bool:
    """Whether this is the process of several (torchrun, accelerate launch) that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def make_folder(results: object) -> None:
    """Make the results folder now rather than after hours. Raises ValueError if that cannot be."""
    try:
        Path(results).mkdir(parents=True, exist_ok=True)
        writable = os.access(results, os.W_OK)
    except (OSError, TypeError):
        writable = False
    if not writable:
        raise ValueError(f"results={results!r}: expected a folder that can be written")


def record_path(results: str | Path, record_id: str) -> Path:
    return Path(results) / "records" / f"{record_id}.json"


def set_aside(path: Path) -> None:
    """Rename what is at the path of a record and is none of this run, and name it on stderr."""
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
    """All records in a folder, by file name. Raises ValueError at the first that is none."""
    for path in sorted(Path(folder).glob("*.json")):
        yield Record.load(path)


def run_id(config: Mapping[str, Any]) -> str:
    """Name a run by what it computes: a hash of the config without paths, device and logger."""
    identity = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    if "model" in identity:
        identity["model"] = {key: value for key, value in identity["model"].items() if key != "device"}
    return digest(identity)


def part_name(config: Mapping[str, Any]) -> str:
    """What a part of a config is called on the command line, read off the class that it makes.

    A recovery that trains parameters for an objective is called by both: lora, importance_lora, distill.
    """
    if {"parameters", "objective"} <= config.keys():
        return recovery_name(config["parameters"], config["objective"])
    name = config["_target_"].rsplit(".", 1)[-1]
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    name = re.sub(r"_(compensation|recovery)$", "", name)
    return "none" if name == "no" else name


def recovery_name(parameters: Mapping[str, Any], objective: Mapping[str, Any]) -> str:
    """What a recovery is called by what it trains and what that learns."""
    trained, learned = part_name(parameters), part_name(objective)
    follows = parameters.get("proportional_to", "uniform")
    if follows != "uniform":
        trained = f"{follows}_{trained}"
    if learned == "next_token":
        return trained
    return "distill" if (trained, learned) == ("lora", "distillation") else f"{trained}/{learned}"


def digest(data: Any) -> str:
    """Twelve hexadecimal digits that stand for JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether cfsp/ or conf/ differ; else None."""

    def git(*command: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # an installed package inside some other tree
            return None
        # Code and configs, untracked ones too; the records of a sweep are changes that do not count.
        changes = git("status", "--porcelain", "--", ":/cfsp", ":/conf")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and threads."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def reset_peak(device: str) -> None:
    """Begin a new measurement of `peak_bytes`, where the system lets a process do so."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # no Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Peak memory since `reset_peak`: resident, and allocated on the GPU if there is one."""
    if Path("/proc/self/status").is_file():
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = {"host": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))}
    else:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
