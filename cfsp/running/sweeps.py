"""Sweeps: the outcomes of jobs, printed as they end and stored in a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from statistics import fmean

from cfsp.bars import duration, speak

FILE = "jobs.jsonl"
"""In the sweep's folder, with a line per job that has ended."""

STATES = ("made", "read", "failed")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job. state: "made", "read" (its record existed) or "failed".

    file: its record, or its failure. removed: fraction of all parameters. active: of a routed model, the
    share of its units that tokens use, or NaN. metric: the first that was measured, with its values of the
    dense and the pruned model. number, name: of the job in its sweep.
    """

    state: str
    seconds: float = 0.0
    file: str | None = None
    removed: float | None = None
    metric: str | None = None
    dense: float | None = None
    pruned: float | None = None
    error: str | None = None
    number: int = 0
    name: str = ""
    active: float | None = None

    @property
    def size(self) -> str:
        """What the job removed, or the share that it left active, for a cell of a table."""
        if self.active is not None:
            return "routed" if isnan(self.active) else f"{self.active:.1%} active"
        return "-" if self.removed is None else f"{self.removed:.1%}"

    def __str__(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        how = f"made in {duration(self.seconds)}" if self.state == "made" else "read"
        measured = "" if self.metric is None else f"{self.metric} {self.dense:.4g} -> {self.pruned:.4g}, "
        what = "" if self.active is not None else " of the model removed"
        return f"{measured}{self.size}{what}, {how}"


class Sweep:
    """Prints the progress of a sweep on stdout, and stores each job's outcome in its folder."""

    def __init__(self, folder: Path, total: int) -> None:
        self.file, self.total = folder / FILE, total
        self.start = time.monotonic()
        self.ended: list[Outcome] = []
        self.made_at: list[float] = []
        self.file_is_whole = True

    def announce(self, number: int, name: str) -> None:
        """Print that a job begins."""
        speak(f"[{number + 1}/{self.total}] {name}{self.left()}")

    def end(self, number: int, name: str, outcome: Outcome) -> None:
        """Print and store the outcome of a job."""
        outcome = replace(outcome, number=number, name=name)
        self.ended.append(outcome)
        if outcome.state == "made":
            self.made_at.append(time.monotonic())
        try:
            with self.file.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        except OSError as error:
            self.file_is_whole = False
            print(f"cfsp: {self.file} cannot be written ({error.strerror})", file=sys.stderr)
        speak(f"[{number + 1}/{self.total}] {name}: {outcome}")

    def left(self) -> str:
        """Return the time left, if the remaining jobs take as long as those made after the first.

        The first one also does what all share, such as calibration, so alone it tells only the most.
        """
        if not self.made_at:
            return ""
        times = [self.start, *self.made_at]
        steps = [after - before for before, after in pairwise(times)]
        left = self.total - len(self.ended)
        if len(steps) == 1:
            return f" ({len(self.ended)} ended, {duration(steps[0] * left)} left or less)"
        return f" ({len(self.ended)} ended, about {duration(fmean(steps[1:]) * left)} left)"

    def interrupted(self) -> str:
        return f"{len(self.ended)} of {self.total} jobs ended; the same command goes on with the others"


def outcomes(folder: Path) -> list[Outcome]:
    """Return the outcomes of a sweep's jobs, by number; none if its launcher stored no file.

    Raises:
        ValueError: a line is incomplete, because the disk was full.
    """
    file = folder / FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    try:
        found = [Outcome(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is incomplete; cfsp-tables shows the records") from error
    return sorted(found, key=lambda one: one.number)


def count_of(found: Sequence[Outcome]) -> str:
    """Return how many jobs were made, read and failed, as text."""
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)
