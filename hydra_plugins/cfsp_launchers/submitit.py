"""Jobs on a Slurm cluster, or on this machine in the same way, by submitit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.cfsp_launchers._base import SweepJob, SweepLauncher, need

SHARED = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
"""Parameters that submitit has for every cluster; others are prefixed with the cluster's name."""


class SubmititLauncher(SweepLauncher):
    """Submits the jobs as one array. Ctrl-C stops the waiting, not the jobs.

    cluster: `slurm` or `local`. folder: for scripts, logs and results of the jobs. max_num_timeout: how
    often a job that ran out of time is queued again. parameters: passed on to submitit.
    """

    def __init__(self, cluster: str, folder: str, max_num_timeout: int = 0, **parameters: Any) -> None:
        self.cluster, self.folder, self.max_num_timeout = cluster, folder, max_num_timeout
        self.parameters = parameters

    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        submitit = need("submitit", f"submitit_{self.cluster}")
        try:
            queued = self.executor(submitit).submit_array([Requeued(job) for job in jobs])
        except (RuntimeError, NameError, AssertionError) as error:  # submitit's, for wrong parameters
            raise ValueError(f"hydra/launcher=submitit_{self.cluster}: {error}") from error
        for job, place in zip(jobs, queued, strict=True):
            try:
                yield job, place.result()
            except submitit.core.utils.UncompletedJobError:
                yield job, job.lost(f"job {place.job_id} ended without a result; see {place.paths.stderr}")

    def executor(self, submitit: Any) -> Any:
        """Return submitit's executor with our parameters. Raises RuntimeError if there is no such cluster."""
        timeouts = {f"{self.cluster}_max_num_timeout": self.max_num_timeout}
        executor = submitit.AutoExecutor(self.folder, self.cluster, **timeouts)
        executor.update_parameters(
            **{
                name if name in SHARED else f"{self.cluster}_{name}": (
                    OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                )
                for name, value in self.parameters.items()
            }
        )
        return executor


class Requeued:
    """A job that starts again when the queue stops it, and reads from disk what it had finished."""

    def __init__(self, job: SweepJob) -> None:
        self.job = job

    def __call__(self) -> JobReturn:
        return self.job()

    def checkpoint(self) -> Any:
        """Return what submitit queues next when the job is preempted or out of time."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
