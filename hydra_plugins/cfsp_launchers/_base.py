"""Base of all launchers: a job that can run in another process, and the report of a job that died."""

from __future__ import annotations

import os
import shlex
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep, with everything that another process needs to run it."""

    number: int
    name: str  # the overrides that differ between jobs
    overrides: tuple[str, ...]
    context: HydraContext
    config: DictConfig
    task: TaskFunction
    singletons: Mapping[Any, Any]  # Hydra's own state
    folder: str  # where the sweep was started: the config's paths are relative to it

    def __call__(self) -> JobReturn:
        """Run the job in this process."""
        os.chdir(self.folder)
        Singleton.set_state(self.singletons)
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, [*self.overrides])
        with open_dict(config.hydra.job):
            config.hydra.job.id = config.hydra.job.num = self.number
        done = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        sys.stdout.flush()  # the process may live on for the next job
        return done

    def lost(self, reason: str) -> JobReturn:
        """Report and store that the job's process died. To Hydra the job is complete, so the others go on."""
        from cfsp.records.failures import Failure
        from cfsp.records.identity import run_id
        from cfsp.running.plain import plain
        from cfsp.running.sweeps import Outcome

        composed = self.context.config_loader.load_sweep_config(self.config, [*self.overrides])
        sweep = Path(composed.hydra.sweep.dir).name
        own = [str(key) for key in composed if key != "hydra"]
        config = plain(OmegaConf.masked_copy(composed, own), resolve=True)
        command = shlex.join(["cfsp", *self.overrides])
        failure = Failure.of(ChildProcessError(reason), run_id(config), config, command, sweep)
        print(f"cfsp: error: {self.name}: {reason}", file=sys.stderr)
        file = None
        try:
            file = str(failure.save(config["results"]))
        except (OSError, ValueError) as fault:
            print(f"cfsp: the failure cannot be kept ({fault})", file=sys.stderr)
        done = JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        done.return_value = Outcome("failed", error=reason, file=file)
        return done


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep and prints its progress. A job that fails or dies does not stop the others.

    announces: whether jobs run one after the other, so that the launcher can print which one begins.
    """

    announces: ClassVar[bool] = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # Hydra's own plug-ins will not do: a killed job ends their whole sweep, joblib's cannot give each
        # worker its GPU, and Ray's needs an older cloudpickle.
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs and return their results in order. Exit with one line if no job can be started."""
        from cfsp.bars import task  # Hydra imports launchers before the app
        from cfsp.running.sweeps import Sweep

        setup_globals()
        # Resolved once, so that all jobs agree on the time in its name.
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = self.jobs(job_overrides, initial_job_idx)
        self.sweep = Sweep(folder, initial_job_idx + len(jobs))
        returns: dict[int, JobReturn] = {}
        try:
            with nullcontext() if self.announces else task("jobs", "job", len(jobs)) as shown:
                for job, done in self.run(jobs):
                    returns[job.number] = done
                    self.sweep.end(job.number, job.name, done.return_value)
                    if shown is not None:
                        shown.advance()
        except (ValueError, ConnectionError) as error:
            print(f"cfsp: error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(1) from error
        except KeyboardInterrupt:
            print(f"cfsp: {self.sweep.interrupted()}", file=sys.stderr)
            raise
        if not self.sweep.file_is_whole and any(one.state == "failed" for one in self.sweep.ended):
            raise SystemExit(1)  # the sweep's file does not report the failure
        return [returns[job.number] for job in jobs]

    def jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[SweepJob]:
        """Make the jobs of a batch, each named by the overrides that not all of them share."""
        shared = set.intersection(*map(set, job_overrides))
        return [
            SweepJob(
                number,
                " ".join(override for override in overrides if override not in shared) or f"job {number + 1}",
                tuple(overrides),
                self.context,
                self.config,
                self.task,
                Singleton.get_state(),
                os.getcwd(),
            )
            for number, overrides in enumerate(job_overrides, first)
        ]

    @abstractmethod
    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        """Run all jobs, in any order.

        Raises:
            ValueError, ConnectionError: no job can be started.
        """


def need(module: str, launcher: str) -> ModuleType:
    """Import the package that a launcher needs. Raises ValueError if it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.split(".")[0]
        raise ValueError(f"hydra/launcher={launcher}: expected {package}; pip install {package}") from None
