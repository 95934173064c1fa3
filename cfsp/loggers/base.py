"""The base class of loggers, and the log that passes a run's values to several."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from cfsp.options import Checked
from cfsp.records.record import Metric, Record


@dataclass(frozen=True)
class Job:
    """What loggers know of a run when it begins. group: the sweep that it belongs to, if any."""

    id: str
    config: Mapping[str, Any]
    results: Path
    command: str | None = None
    group: str | None = None


class Logger(Checked, ABC):
    """Follows one run. A fault of its service or disk never ends the run.

    faults: errors after which it gets no more values, only the end of the run; a warning is printed.
    """

    faults: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    @abstractmethod
    def open(self, job: Job) -> None:
        """Begin to follow a run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int | None) -> None:
        """Log numbers by name. step: the training step that they belong to."""

    @abstractmethod
    def close(self, record: Record | None) -> None:
        """Stop: the run has ended. record: None if it failed."""


class Log:
    """One run's loggers: opens them together and closes all of them, even after errors."""

    def __init__(self, loggers: Sequence[Logger], job: Job) -> None:
        self.loggers, self.job = loggers, job
        self.opened: list[Logger] = []
        self.silent: set[int] = set()  # ids of loggers that had a fault
        self.record: Record | None = None

    def __enter__(self) -> Log:
        with ExitStack() as opening:
            opening.callback(self._close)  # the open ones, if opening is interrupted
            for logger in self.loggers:
                with self._unless_it_faults(logger):
                    logger.open(self.job)
                    self.opened.append(logger)
            opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of one training step."""
        self._log({f"recovery/{name}": value for name, value in values.items()}, step)

    def metrics(self, stage: str, found: Mapping[str, Metric]) -> None:
        """Log all metrics of the dense or the pruned model."""
        self._log({f"{stage}/{name}": metric.value for name, metric in found.items()}, None)

    def finish(self, record: Record) -> None:
        """Pass the finished run's record to the loggers when they close."""
        self.record = record

    def _log(self, values: Mapping[str, float], step: int | None) -> None:
        for logger in self.opened:
            if id(logger) not in self.silent:
                with self._unless_it_faults(logger):
                    logger.log(values, step)

    def _close(self) -> None:
        with ExitStack() as closing:  # closes each, even if another one raises
            for logger in reversed(self.opened):
                closing.callback(self._close_one, logger)

    def _close_one(self, logger: Logger) -> None:
        with self._unless_it_faults(logger):
            logger.close(self.record)

    @contextmanager
    def _unless_it_faults(self, logger: Logger) -> Iterator[None]:
        """Catch a logger's fault: warn once and give it no more values."""
        try:
            yield
        except logger.faults as error:
            if id(logger) not in self.silent:
                print(
                    f"cfsp: {type(logger).__name__} stops following this run, which goes on ({error!r})",
                    file=sys.stderr,
                )
                self.silent.add(id(logger))
