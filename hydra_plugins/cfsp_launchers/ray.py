"""Jobs as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.core.utils import JobReturn

from hydra_plugins.cfsp_launchers._base import SweepJob, SweepLauncher, need


class RayLauncher(SweepLauncher):
    """Runs each job as a Ray task. Ray assigns nodes and GPUs by what a job requests, and queues the rest.

    address: a running head; `auto` is the one on this machine; None starts a local cluster that ends with
    the sweep. num_cpus: CPUs of a job, and its threads. num_gpus: GPUs of a job; 0.5 lets two share one.
    """

    def __init__(self, address: str | None, num_cpus: int, num_gpus: float) -> None:
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        ray = need("ray", "ray")
        ray.init(address=self.address or "local", logging_level="error")
        try:
            # max_retries: a job that was killed for its memory would be killed again.
            task = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(run_job)
            for job, result in [(job, task.remote(job)) for job in jobs]:
                try:
                    yield job, ray.get(result)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    yield job, job.lost(f"its Ray worker died ({type(error).__name__})")
        finally:
            ray.shutdown()


def run_job(job: SweepJob) -> JobReturn:
    """Run a job. Ray needs a function, not an object."""
    return job()
