"""Attempts: report and store the failure of a job without stopping its sweep."""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cfsp.checks import UnknownName
from cfsp.running.plain import plain
from cfsp.running.sweeps import FILE, Outcome, outcomes
from cfsp.storage.atomic import writing

CONFIG = "multirun.yaml"
"""What Hydra was asked, in a sweep's folder."""

ABANDONED = 7 * 86400.0
"""Seconds after which a sweep's folder without an ended job is deleted: no first job takes so long."""

EXPECTED = (ValueError, UnknownName, OSError, OmegaConfBaseException)
"""Errors of bad input and bad disks. Any other is a bug, and its type is printed too."""


class Attempt:
    """Run one job; report and store its failure.

    The error becomes one line on stderr and a file in `<results>/failures`, which holds the traceback;
    HYDRA_FULL_ERROR=1 prints it too. The error is not raised: the job may run in another process than its
    sweep. outcome: of the job; the caller sets it.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.start = cfg, time.perf_counter()
        self.outcome = Outcome("made")
        self.stored: tuple[Exception, Path | None] | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.outcome = replace(self.outcome, seconds=round(time.perf_counter() - self.start, 3))
        if not isinstance(error, Exception):  # no error, or Ctrl-C, which ends the whole sweep
            return False
        path = self.store(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        hint = "" if isinstance(error, EXPECTED) or path is None else f" (the traceback is in {path})"
        print(f"cfsp: error: {one_line(error)}{hint}", file=sys.stderr)
        self.outcome = replace(self.outcome, state="failed", error=one_line(error), file=path and str(path))
        return True

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Store a failure of the block while the run is locked: a waiting process may then finish it."""
        try:
            yield
        except Exception as error:  # of any kind, as above
            self.store(error)
            raise

    def store(self, error: Exception) -> Path | None:
        """Write the failure once. -> its file, or None if it cannot be written"""
        if self.stored is None or self.stored[0] is not error:
            self.stored = error, keep(error, self.cfg)
        return self.stored[1]


class SweepEnd(Callback):
    """Makes a sweep's folder, and prints a table of all its jobs at the end, whatever process ran them."""

    def __init__(self) -> None:
        self.ended: list[Outcome] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with one line if the sweep's folder cannot be written."""
        folder = Path(config.hydra.sweep.dir)
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                OmegaConf.save(config, folder / CONFIG)
                (folder / FILE).unlink(missing_ok=True)  # of another sweep that had this folder
        except OSError as error:
            print(f"cfsp: error: {error}: results=FOLDER or hydra.sweep.dir=FOLDER", file=sys.stderr)
            raise SystemExit(1) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remember the outcome of a job in this process: Hydra's own launcher stores none."""
        if isinstance(job_return.return_value, Outcome):
            self.ended.append(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table. Exit with code 1 if a job failed, or if the outcomes cannot be read.

        Hydra turns an exception of a callback into a warning, but not SystemExit.
        """
        from cfsp.running.summary import show_sweep

        try:
            found = outcomes(Path(config.hydra.sweep.dir)) or self.ended
        except ValueError as error:
            print(f"cfsp: error: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        show_sweep(found, config.results)
        remove_abandoned(Path(config.results) / "sweeps")
        if any(one.state == "failed" for one in found):
            raise SystemExit(1)


def remove_abandoned(sweeps: Path) -> None:
    """Delete the folders of sweeps that were killed before their first job ended."""
    for folder in sweeps.glob("*/"):
        with suppress(OSError):  # another process deletes it too
            held = {path.name for path in folder.iterdir()}
            if held <= {CONFIG} and time.time() - folder.stat().st_mtime > ABANDONED:
                (folder / CONFIG).unlink(missing_ok=True)
                folder.rmdir()


def sweep_name() -> str | None:
    """Return the name of the sweep's folder; None outside a sweep."""
    hydra_cfg = HydraConfig.get()
    return Path(hydra_cfg.sweep.dir).name if hydra_cfg.mode == RunMode.MULTIRUN else None


def command() -> str:
    """Return the command line that runs this job alone."""
    return shlex.join(["cfsp", *HydraConfig.get().overrides.task])


def one_line(error: Exception) -> str:
    """Return the message in one line, after the error's type if that is not in `EXPECTED`."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value; expected {error.full_key}=..."
    kind = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def keep(error: Exception, cfg: DictConfig) -> Path | None:
    """Write the failure. -> its file, or None if the results folder cannot be written"""
    from cfsp.records.failures import Failure
    from cfsp.records.identity import run_id

    try:
        config = plain(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:  # the config itself is what failed
        config = plain(cfg)
    try:
        failure = Failure.of(error, run_id(config), config, command(), sweep_name())
        return failure.save(str(config.get("results", "results")))
    except ValueError:  # the folder is at fault, which the error says already
        return None
    except OSError as fault:
        print(f"cfsp: the failure cannot be kept ({fault})", file=sys.stderr)
        return None
