"""Jobs side by side in processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from signal import SIG_IGN, SIGINT, signal

from hydra.core.utils import JobReturn

from hydra_plugins.cfsp_launchers._base import Job, ProcessLauncher, need


class JoblibLauncher(ProcessLauncher):
    """Worker processes of joblib (loky), each with its GPU and its share of the cores.

    One pool of one process per worker: a pool of several cannot say which process gets which GPU, and
    loses all jobs with one. n_jobs: jobs at a time. threads: of each; None divides the cores.
    """

    def __init__(self, n_jobs: int, threads: int | None = None) -> None:
        self.n_jobs, self.threads = n_jobs, threads

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobReturn]]:
        loky = need("joblib.externals.loky", "joblib")
        for name, value in (("n_jobs", self.n_jobs), ("threads", self.threads)):
            if not isinstance(value, int | None) or isinstance(value, bool) or (value or 1) < 1:
                raise ValueError(f"hydra.launcher.{name}={value!r}: expected a whole number of at least 1")
        workers = min(self.n_jobs, len(jobs))
        threads = self.threads or threads_per_worker(workers, loky.cpu_count())
        gpus = visible_gpus()

        def start(worker: int) -> loky.ProcessPoolExecutor:
            environment = worker_environment(worker, threads, gpus)
            # Ctrl-C reaches the whole group of processes; this one speaks, and ends the others.
            return loky.ProcessPoolExecutor(1, env=environment, initializer=signal, initargs=(SIGINT, SIG_IGN))

        pools = [start(worker) for worker in range(workers)]
        waiting = iter(jobs)
        running = {pool.submit(job): (worker, job) for (worker, pool), job in zip(enumerate(pools), waiting)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, job = running.pop(future)
                    try:
                        yield job, future.result()
                    except loky.BrokenProcessPool:
                        yield job, job.lost("its process was killed, perhaps for want of memory")
                        pools[worker] = start(worker)
                    for job in waiting:
                        running[pools[worker].submit(job)] = worker, job
                        break
        finally:
            for pool in pools:
                pool.shutdown(kill_workers=bool(running))


def threads_per_worker(workers: int, cores: int) -> int:
    """What OMP_NUM_THREADS says, as it does for one process alone, else an equal share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else max(1, cores // workers)


def visible_gpus() -> list[str]:
    """The GPUs that a process started here would see, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    import torch

    return [str(gpu) for gpu in range(torch.cuda.device_count())]


def worker_environment(worker: int, threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """What worker 0, 1, ... is started with: one GPU in turn, and no more threads than its share.

    Set before the process starts, because CUDA and OpenMP read it once. Its GPU is its `cuda`.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    return environment
