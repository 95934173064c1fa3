"""What a logger is, and how a run speaks to several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cfsp.record import Metric, Record


@dataclass(frozen=True)
class Job:
    """What loggers are told of a run before it begins. group: the sweep that it belongs to, if any."""

    id: str
    config: Mapping[str, Any]
    results: Path
    command: str | None = None
    group: str | None = None


class Logger(ABC):
    """Follows one run. What a service does or does not answer must never end the run."""

    @abstractmethod
    def open(self, job: Job) -> None:
        """A run begins."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int | None) -> None:
        """Numbers by name. step: of the training that they belong to."""

    @abstractmethod
    def close(self, record: Record | None) -> None:
        """The run ended. record: None if it failed."""


class Log:
    """One run's loggers, opened together and closed whatever happens."""

    def __init__(self, loggers: Sequence[Logger], job: Job) -> None:
        self.loggers, self.job = loggers, job
        self.record: Record | None = None

    def __enter__(self) -> Log:
        for logger in self.loggers:
            logger.open(self.job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in self.loggers:
            logger.close(self.record)

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step of training."""
        for logger in self.loggers:
            logger.log({f"recovery/{name}": value for name, value in values.items()}, step)

    def metrics(self, stage: str, found: Mapping[str, Metric]) -> None:
        """All metrics of the dense or the pruned model."""
        for logger in self.loggers:
            logger.log({f"{stage}/{name}": metric.value for name, metric in found.items()}, None)

    def finish(self, record: Record) -> None:
        """What the run came to."""
        self.record = record
