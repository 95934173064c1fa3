"""Failures: the error that ended a run, in a JSON file that is deleted when the run finishes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from cfsp.machine.environment import environment, git_state, now
from cfsp.records.fields import Environment, Git
from cfsp.records.record import make_folder
from cfsp.storage.atomic import write_json
from cfsp.storage.schema import load_each, parse, read_json


class Raised(TypedDict):
    type: str
    message: str


@dataclass(frozen=True)
class Failure:
    """A run that raised. sweep: the name of its folder, if it was in one."""

    id: str
    created: str
    error: Raised
    traceback: str
    command: str | None
    sweep: str | None
    config: Mapping[str, Any]
    git: Git | None
    environment: Environment

    @classmethod
    def of(
        cls, error: BaseException, run_id: str, config: Mapping[str, Any], command: str, sweep: str | None
    ) -> Failure:
        return cls(
            id=run_id,
            created=now(),
            error={"type": type(error).__name__, "message": str(error)},
            traceback="".join(traceback.format_exception(error)),
            command=command,
            sweep=sweep,
            config=config,
            git=git_state(),
            # The device may have failed, so it is named, not queried.
            environment=environment(torch.device("cpu")) | {"device": str(config.get("device"))},
        )

    def save(self, results: str | Path) -> Path:
        """Write the failure. Raises OSError or ValueError if the folder cannot be written."""
        make_folder(results)
        path = failure_path(results, self.id)
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: Path) -> Failure:
        """Read a failure. Raises ValueError if the file is not one, OSError if it cannot be read."""
        try:
            return parse(cls, read_json(path))
        except ValueError as error:
            raise ValueError(f"{path}: no failure of this version of cfsp ({error})") from error

    @property
    def said(self) -> str:
        """Type and message of the error, on one line."""
        return f"{self.error['type']}: {' '.join(self.error['message'].split())}".removesuffix(": ")


def failure_path(results: str | Path, run_id: str) -> Path:
    return Path(results) / "failures" / f"{run_id}.json"


def forget(results: str | Path, run_id: str) -> None:
    """Delete the failure of a run that is finished now. If it cannot be deleted, report it on stderr."""
    path = failure_path(results, run_id)
    try:
        if path.exists():
            path.unlink(missing_ok=True)
    except OSError as error:
        print(f"cfsp: {path} cannot be deleted; its run is finished ({error.strerror})", file=sys.stderr)


def read_failures(results: str | Path) -> tuple[list[Failure], list[str]]:
    """Read the failures in a results folder, by file name. Also return a line of error for each bad file."""
    return load_each(sorted((Path(results) / "failures").glob("*.json")), Failure.load)


def of_sweep(results: str | Path, sweep: str) -> list[Path]:
    """Return the files of a sweep's failures. Report files that cannot be read on stderr."""
    failures, faults = read_failures(results)
    for fault in faults:
        print(f"cfsp: {fault}", file=sys.stderr)
    return [failure_path(results, failure.id) for failure in failures if failure.sweep == sweep]
