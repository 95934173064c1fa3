"""The files of one run: its record, its model, and what killed attempts left."""

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
from cfsp.records.outcome_file import left_parts, tidy_outcomes, write_outcomes
from cfsp.records.record import Record, record_path, set_aside
from cfsp.storage.atomic import clear_parts, parts_of
from cfsp.storage.locks import LOCKLESS, holding_if_possible

RECORD = "record.json"
"""A model's own copy of its record."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run stores its results. target: the folder of its model if it is saved, links resolved.

    The model's folder holds a copy of the record and gets its name when both are complete; the record is
    written after it. A run that saves its model is finished if the two records agree and the model's files
    match their checksums. If only the record is missing, the copy replaces it.
    """

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
        """The folder from which an interrupted run resumes."""
        return self.results / "recovery" / self.id

    @property
    def models(self) -> Path:
        """The folder of the model with `save=true`; nothing else is stored there."""
        return self.results / "models" / self.id

    def may_replace(self, overwrite: bool) -> bool:
        """Return whether a model at the target may be replaced: `overwrite`, or it can only be this run's."""
        return overwrite or self.target == self.models.resolve()

    @property
    def lock(self) -> Path:
        return self.results / f".{self.id}.lock"

    def finished(self) -> Record | None:
        """Return the record if the run is finished; if it saves its model, only beside that very model.

        Writes nothing and takes no lock, so the folder may be read-only. If the run was killed between
        writing its model and its record, the record is read from the model's folder.
        """
        found = self._read(self.record)
        if self.target is None:
            return found
        try:
            return self._read_beside(found)
        except (ValueError, OSError):
            return None

    def _read_beside(self, found: Record | None) -> Record | None:
        """Return the record in the model's folder, if there is one.

        Raises:
            ValueError: it differs from `found`, or the model is not as it was saved.
        """
        if self.target is None or not (self.target / RECORD).exists():
            return None
        beside = self._read(self.target / RECORD)
        if beside is None or (found is not None and found.text() != beside.text()):
            raise ValueError(f"{self.target} is not the model of {self.record}")
        check_model(self.target, quick=True)  # a sweep asks this of every model; load and push read all
        return beside

    def _read(self, path: Path) -> Record | None:
        """Return the record at `path` if it is this run's."""
        with suppress(ValueError, OSError):
            found = Record.load(path)
            return found if found.id == self.id else None
        return None

    def settled(self) -> bool:
        """Return whether a finished run has nothing to clean up, or the disk is read-only."""
        if not self.results.exists():  # the model alone is left; its record is written again
            return False
        return not os.access(self.results, os.W_OK) or (self.record.exists() and not self._left())

    def _left(self) -> list[Path]:
        """Return the files of killed, failed and running attempts."""
        failure = failure_path(self.results, self.id)
        left = [path for path in (self.lock, failure, self.training) if path.exists()]
        left += [*parts_of(self.record), *parts_of(failure), *left_parts(self.results, self.id)]
        if self.target is not None:
            lock = lock_of(self.target)
            left += [*parts_of(self.target), *([lock] if lock.exists() else [])]
        return left

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the run, and delete the partial files of killed processes.

        The main process of a distributed training holds the lock for all.
        """
        if not is_main():
            yield
            return
        with holding_if_possible(self.lock, f"another process makes {self.id}", only=LOCKLESS) as held:
            if held:
                for path in (self.record, failure_path(self.results, self.id)):
                    clear_parts(path)
                if self.target is not None and (parts_of(self.target) or lock_of(self.target).exists()):
                    with alone_in(self.target):  # deletes the partial files
                        pass
            yield

    def settle(self) -> Record | None:
        """Clean up the files, and return what `finished` does. The caller must hold the lock.

        Deletes what attempts of a finished run left. Names files that are not this run's on stderr.
        """
        if is_main():
            set_aside(self.record)
            self._say_what_does_not_fit()
        found = self.finished()
        if found is not None and is_main():
            if not self.record.exists():
                found.save(self.results)
            tidy_outcomes(self.results, found)
            self.tidy()
        return found

    def _say_what_does_not_fit(self) -> None:
        """Print why a model at the target is not this run's."""
        try:
            if self.target is not None:
                self._read_beside(self._read(self.record))
        except (ValueError, OSError) as error:
            print(f"cfsp: {error}", file=sys.stderr)

    def keep(self, record: Record, save_model: Callable[[], None]) -> None:
        """Write the outcomes, the model if it is saved, then the record; no two on disk ever disagree."""
        write_outcomes(self.results, record)
        if self.target is not None:
            if self._read(self.target / RECORD) is not None:
                # The old pair stays in the folder until the new one is there.
                self.record.unlink(missing_ok=True)
            save_model()
        record.save(self.results)
        tidy_outcomes(self.results, record)
        older = self._read(self.models / RECORD)
        if older is not None and older.text() != record.text():
            print(f"cfsp: the model in {self.models} is of an older record of this run", file=sys.stderr)

    def tidy(self) -> None:
        """Delete what only an unfinished run needs."""
        shutil.rmtree(self.training, ignore_errors=True)
        forget(self.results, self.id)
