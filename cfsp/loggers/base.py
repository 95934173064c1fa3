"""What a logger is, and how a run speaks to several."""

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
    """What loggers are told of a run before it begins. group: the sweep that it belongs to, if any."""

    id: str
    config: Mapping[str, Any]
    results: Path
    command: str | None = None
    group: str | None = None


class Logger(Checked, ABC):
    """Follows one run. What a service or a disk does or does not answer never ends the run.

    faults: what it raises when it can follow no longer; it is then told nothing but the end, which is said on
        stderr.
    """

    faults: ClassVar[tuple[type[Exception], ...]] = (OSError,)

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
        self.opened: list[Logger] = []
        self.silent: set[int] = set()  # ids of those that can follow no longer
        self.record: Record | None = None

    def __enter__(self) -> Log:
        with ExitStack() as opening:
            opening.callback(self._close)  # those that are open, if the next one is interrupted
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
        """Numbers of one step of training."""
        self._log({f"recovery/{name}": value for name, value in values.items()}, step)

    def metrics(self, stage: str, found: Mapping[str, Metric]) -> None:
        """All metrics of the dense or the pruned model."""
        self._log({f"{stage}/{name}": metric.value for name, metric in found.items()}, None)

    def finish(self, record: Record) -> None:
        """What the run came to."""
        self.record = record

    def _log(self, values: Mapping[str, float], step: int | None) -> None:
        for logger in self.opened:
            if id(logger) not in self.silent:
                with self._unless_it_faults(logger):
                    logger.log(values, step)

    def _close(self) -> None:
        with ExitStack() as closing:  # each, whatever another one raises, and whatever it raised before
            for logger in reversed(self.opened):
                closing.callback(self._close_one, logger)

    def _close_one(self, logger: Logger) -> None:
        with self._unless_it_faults(logger):
            logger.close(self.record)

    @contextmanager
    def _unless_it_faults(self, logger: Logger) -> Iterator[None]:
        """Go on without a logger that can follow no longer."""
        try:
            yield
        except logger.faults as error:
            if id(logger) not in self.silent:
                print(
                    f"cfsp: {type(logger).__name__} follows this run no longer ({error!r})", file=sys.stderr
                )
                self.silent.add(id(logger))
