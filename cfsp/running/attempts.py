"""Attempts: report and store the failure of a job without stopping its sweep."""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfsp.running.plain import plain
from cfsp.running.sweeps import FILE, Outcome, outcomes
from cfsp.storage.atomic import writing

ABANDONED = 60.0
"""Seconds after which a sweep's folder that is empty is one of a killed sweep."""

EXPECTED = (ValueError, KeyError, OSError, OmegaConfBaseException)
"""What bad input and bad disks raise; anything else is a fault of the program, whose kind is said too."""


class Attempt:
    """Run one job; report and store its failure.

    The error becomes one line on stderr and a file in `<results>/failures`. HYDRA_FULL_ERROR=1 shows the
    traceback, which the file has in any case. outcome: what became of the job; the caller sets it.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.start = cfg, time.perf_counter()
        self.outcome = Outcome("made")

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.outcome = replace(self.outcome, seconds=round(time.perf_counter() - self.start, 3))
        if not isinstance(error, Exception):  # none, or Ctrl-C, which is no failure and ends everything
            return False
        path = keep(error, self.cfg)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        hint = "" if isinstance(error, EXPECTED) or path is None else f" (the traceback is in {path})"
        print(f"cfsp: error: {one_line(error)}{hint}", file=sys.stderr)
        self.outcome = replace(self.outcome, state="failed", error=one_line(error), file=path and str(path))
        return True


class SweepEnd(Callback):
    """Begins a sweep with its folder and ends it with a table of all jobs, whatever process ran them."""

    def __init__(self) -> None:
        self.ended: list[Outcome] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End in one line where Hydra could not write what it begins a sweep with."""
        folder = Path(config.hydra.sweep.dir)
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                OmegaConf.save(config, folder / "multirun.yaml")
                (folder / FILE).unlink(missing_ok=True)  # of another sweep that had this folder
        except OSError as error:
            print(f"cfsp: error: {error}: results=FOLDER or hydra.sweep.dir=FOLDER", file=sys.stderr)
            raise SystemExit(1) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take note of a job of this process: Hydra's own launcher keeps nothing."""
        if isinstance(job_return.return_value, Outcome):
            self.ended.append(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the table. Exit code 1 if a job failed, or if it is not known of all whether they did.

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
    """Delete the empty folders of sweeps that were killed before their first job."""
    for folder in sweeps.glob("*/"):
        with suppress(OSError):  # it holds something
            if time.time() - folder.stat().st_mtime > ABANDONED:
                folder.rmdir()


def sweep_name() -> str | None:
    """The name of the sweep's folder, in a job of a sweep."""
    hydra_cfg = HydraConfig.get()
    return Path(hydra_cfg.sweep.dir).name if hydra_cfg.mode == RunMode.MULTIRUN else None


def command() -> str:
    """What a user types to run this job alone."""
    return shlex.join(["cfsp", *HydraConfig.get().overrides.task])


def one_line(error: Exception) -> str:
    """The message; of an error that nobody expected, its kind before it."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
    return kind + " ".join(message.split())


def keep(error: Exception, cfg: DictConfig) -> Path | None:
    """Write the failure; None if the results folder does not take it, which is said on stderr."""
    from cfsp.records.failures import Failure
    from cfsp.records.identity import run_id

    try:
        config = plain(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:  # the config itself is what failed
        config = plain(cfg)
    try:
        failure = Failure.of(error, run_id(config), config, command(), sweep_name())
        return failure.save(str(config.get("results", "results")))
    except ValueError:  # the folder is what failed, and what the error is about
        return None
    except OSError as fault:
        print(f"cfsp: the failure cannot be kept ({fault})", file=sys.stderr)
        return None
