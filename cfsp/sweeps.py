"""Sweeps: what became of each job, as lines while they run, a file beside them, and a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cfsp.bars import duration

FILE = "jobs.jsonl"
"""In the sweep's folder, a line per job that has ended."""


@dataclass(frozen=True)
class Outcome:
    """What became of one job. state: "made", "read" (its record was there) or "failed".

    removed: share of all parameters. metric: the first that was measured, its dense and its pruned value.
    """

    state: str
    seconds: float
    record: str | None = None
    removed: float | None = None
    metric: str | None = None
    dense: float | None = None
    pruned: float | None = None
    error: str | None = None
    number: int = 0
    name: str = ""

    def __str__(self) -> str:
        if self.state == "failed":
            return f"failed: {self.error}"
        how = f"made in {duration(self.seconds)}" if self.state == "made" else "read, it was there"
        if self.metric is None:
            return how
        return f"{self.metric} {self.dense:.4g} -> {self.pruned:.4g}, {self.removed:.1%} removed, {how}"


class Sweep:
    """Counts the jobs of one sweep as they end, and says so on stdout."""

    def __init__(self, folder: Path, total: int) -> None:
        self.file, self.total = folder / FILE, total
        self.start = time.monotonic()
        self.ended: list[Outcome] = []

    def announce(self, number: int, name: str) -> None:
        """Say that a job begins."""
        print(f"[{number + 1}/{self.total}] {name}", flush=True)

    def end(self, number: int, name: str, outcome: Outcome) -> None:
        """Take note of what became of a job and say it."""
        outcome = replace(outcome, number=number, name=name)
        self.ended.append(outcome)
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        print(f"[{len(self.ended)} of {self.total} ended] {name}: {outcome}{self.left()}", flush=True)

    def left(self) -> str:
        """The time that the other jobs will take at the pace of those that were made."""
        made = sum(one.state == "made" for one in self.ended)
        others = self.total - len(self.ended)
        if not made or not others:
            return ""
        return f"; about {duration((time.monotonic() - self.start) / made * others)} left"


def outcomes(folder: Path) -> list[Outcome]:
    """What became of the jobs of a sweep, by number; nothing if its launcher kept no file."""
    file = folder / FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    return sorted((Outcome(**json.loads(line)) for line in lines), key=lambda one: one.number)


def closing(found: Iterable[Outcome], results: str) -> str:
    """The sentence below the table of a sweep."""
    found = [*found]
    counts = {state: sum(one.state == state for one in found) for state in ("made", "read", "failed")}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    failed = f"; errors are in {results}/failures, the same command runs them again" if counts["failed"] else ""
    return f"{len(found)} jobs: {said}{failed}\ncfsp-tables {results}/records compares them, cfsp-report draws them"
