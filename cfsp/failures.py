"""Failures: what ended a run, in a JSON file that stays until the run is finished."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cfsp.record import environment, git_state, make_folder, now, write_json


@dataclass(frozen=True)
class Failure:
    """A run that raised. error: `type` and `message`. sweep: the name of its folder, if it was in one."""

    id: str
    created: str
    error: Mapping[str, str]
    traceback: str
    command: str | None
    sweep: str | None
    config: Mapping[str, Any]
    git: Mapping[str, Any] | None
    environment: Mapping[str, Any]

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
            # The device may be what failed, so it is named and not asked.
            environment=environment(torch.device("cpu")) | {"device": config["device"]},
        )

    def save(self, results: str | Path) -> Path:
        """Raises OSError or ValueError if the folder does not take it."""
        make_folder(results)
        path = failure_path(results, self.id)
        write_json(path, asdict(self))
        return path


def failure_path(results: str | Path, run_id: str) -> Path:
    return Path(results) / "failures" / f"{run_id}.json"


def forget(results: str | Path, run_id: str) -> None:
    """Remove what an earlier attempt left: the run is finished."""
    failure_path(results, run_id).unlink(missing_ok=True)


def of_sweep(results: str | Path, sweep: str) -> list[Path]:
    """The failures of a sweep, by file name; a file that cannot be read is named on stderr."""
    found = []
    for path in sorted((Path(results) / "failures").glob("*.json")):
        try:
            if json.loads(path.read_text())["sweep"] == sweep:
                found.append(path)
        except (ValueError, KeyError, TypeError) as error:
            print(f"cfsp: {path}: no failure that can be read ({error})", file=sys.stderr)
    return found
