"""The files of one run: its record, its model, and what killed attempts left of them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cfsp.checkpoints.save import alone_in, check_model, lock_of
from cfsp.machine.environment import is_main
from cfsp.records.failures import failure_path, forget
from cfsp.records.record import Record, record_path, set_aside
from cfsp.storage.atomic import clear_parts, parts_of
from cfsp.storage.locks import LOCKLESS, holding_if_possible

RECORD = "record.json"
"""A model's own copy of its record."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what it found. target: the folder of its model, if that is to be kept; no link."""

    results: Path
    id: str
    target: Path | None

    @classmethod
    def of(cls, results: Path, run_id: str, target: Path | None) -> RunFiles:
        return cls(results, run_id, None if target is None else target.resolve())

    @property
    def record(self) -> Path:
        return record_path(self.results, self.id)

    @property
    def training(self) -> Path:
        """What an interrupted run goes on from."""
        return self.results / "recovery" / self.id

    @property
    def models(self) -> Path:
        """Where `save=true` puts the model; nothing else is ever there."""
        return self.results / "models" / self.id

    def may_replace(self, overwrite: bool) -> bool:
        """Whether a model that is at the target may go: it is asked for, or it can only be this run's."""
        return overwrite or self.target == self.models.resolve()

    @property
    def lock(self) -> Path:
        return self.results / f".{self.id}.lock"

    def finished(self) -> Record | None:
        """The record of a run that is over, together with the very model that it is of, if one is to be kept.

        Nothing is written. A run that was killed between its model and its record has its record in the
        model's folder.
        """
        found = self._read(self.record)
        if self.target is None:
            return found
        try:
            return self._read_beside(found)
        except (ValueError, OSError):
            return None

    def _read_beside(self, found: Record | None) -> Record | None:
        """The record in the model's folder, if there is one.

        Raises:
            ValueError: it is not the one that was found, or the model is not as it was saved.
        """
        if not (self.target / RECORD).exists():
            return None
        beside = self._read(self.target / RECORD)
        if beside is None or (found is not None and found.text() != beside.text()):
            raise ValueError(f"{self.target} is not the model of {self.record}")
        check_model(self.target, quick=True)
        return beside

    def _read(self, path: Path) -> Record | None:
        """A record of this run, if there is one."""
        with suppress(ValueError, OSError):
            found = Record.load(path)
            return found if found.id == self.id else None
        return None

    def settled(self) -> bool:
        """Whether nothing is left to do for a finished run, or nothing can be done on a read-only disk."""
        return not os.access(self.results, os.W_OK) or (self.record.exists() and not self._left())

    def _left(self) -> list[Path]:
        """What killed or failed attempts left, or a running one has."""
        failure = failure_path(self.results, self.id)
        left = [path for path in (self.lock, failure, self.training) if path.exists()]
        left += [*parts_of(self.record), *parts_of(failure)]
        if self.target is not None:
            lock = lock_of(self.target)
            left += [*parts_of(self.target), *([lock] if lock.exists() else [])]
        return left

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from the same run, and clear away what killed ones were writing.

        Of the several processes of one training the main one holds the run for all.
        """
        if not is_main():
            yield
            return
        with holding_if_possible(self.lock, f"another process makes {self.id}", only=LOCKLESS) as held:
            if held:
                for path in (self.record, failure_path(self.results, self.id)):
                    clear_parts(path)
                if self.target is not None and (parts_of(self.target) or lock_of(self.target).exists()):
                    with alone_in(self.target):  # clears what is there
                        pass
            yield

    def settle(self) -> Record | None:
        """Put the files in order, and return what `finished` does.

        Of a finished run nothing is left of its attempts. What is there but is none of this run is named on
        stderr. Only for who holds the run.
        """
        if is_main():
            set_aside(self.record)
            self._say_what_does_not_fit()
        found = self.finished()
        if found is not None and is_main():
            if not self.record.exists():
                found.save(self.results)
            self.tidy()
        return found

    def _say_what_does_not_fit(self) -> None:
        """Say why a model that is there counts as none."""
        try:
            if self.target is not None:
                self._read_beside(self._read(self.record))
        except (ValueError, OSError) as error:
            print(f"cfsp: {error}", file=sys.stderr)

    def keep(self, record: Record, save_model: Callable[[], None]) -> None:
        """Write the model, if it is to be kept, then the record; neither is ever beside another's."""
        if self.target is not None:
            if self._read(self.target / RECORD) is not None:
                self.record.unlink(
                    missing_ok=True
                )  # the old pair stays in the folder until the new one is there
            save_model()
        record.save(self.results)
        older = self._read(self.models / RECORD)
        if older is not None and older.text() != record.text():
            print(f"cfsp: the model in {self.models} is of an older record of this run", file=sys.stderr)

    def tidy(self) -> None:
        """Delete what a run needs until it is finished."""
        shutil.rmtree(self.training, ignore_errors=True)
        forget(self.results, self.id)
