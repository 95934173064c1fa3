"""A log of one line of JSON per event, for scripts and `tail -f`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfsp.loggers.base import Job, Logger
from cfsp.machine.environment import now
from cfsp.records.record import Record
from cfsp.storage.atomic import writing


@dataclass
class Jsonl(Logger):
    """Appends to `<results>/logs/<id>.jsonl`: begin, values, end."""

    path: Path | None = field(default=None, init=False)

    def open(self, job: Job) -> None:
        self.path = job.results / "logs" / f"{job.id}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(event="begin", id=job.id, group=job.group, command=job.command)

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        self.write(event="values", step=step, values=dict(values))

    def close(self, record: Record | None) -> None:
        self.write(event="end", finished=record is not None)

    def write(self, **event: Any) -> None:
        assert self.path is not None, "`open` comes first"
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"time": now(), **event}) + "\n")
