"""Jobs of a Slurm cluster, or of this machine in the same way, by submitit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.cfsp_launchers._base import SweepJob, SweepLauncher, need

SHARED = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
"""Parameters that submitit has for every cluster; the others carry its name in front."""


class SubmititLauncher(SweepLauncher):
    """One array of jobs in the queue. Ctrl-C ends the waiting for them, not the jobs.

    cluster: `slurm` or `local`. folder: scripts, logs and results of the jobs. max_num_timeout: how often a
    job that ran out of time is queued again. parameters: submitit's own.
    """

    def __init__(self, cluster: str, folder: str, max_num_timeout: int = 0, **parameters: Any) -> None:
        self.cluster, self.folder, self.max_num_timeout = cluster, folder, max_num_timeout
        self.parameters = parameters

    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        submitit = need("submitit", f"submitit_{self.cluster}")
        try:
            queued = self.executor(submitit).submit_array([Requeued(job) for job in jobs])
        except (RuntimeError, NameError, AssertionError) as error:  # what submitit raises for parameters
            raise ValueError(f"hydra/launcher=submitit_{self.cluster}: {error}") from error
        for job, place in zip(jobs, queued, strict=True):
            try:
                yield job, place.result()
            except submitit.core.utils.UncompletedJobError:
                yield job, job.lost(f"job {place.job_id} ended without a result; see {place.paths.stderr}")

    def executor(self, submitit: Any) -> Any:
        """submitit's, with our parameters. Raises RuntimeError where there is no such cluster."""
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
    """A job that begins anew when the queue stops it; what it had finished it reads from disk."""

    def __init__(self, job: SweepJob) -> None:
        self.job = job

    def __call__(self) -> JobReturn:
        return self.job()

    def checkpoint(self) -> Any:
        """What submitit queues in its place when it is preempted or out of time."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
