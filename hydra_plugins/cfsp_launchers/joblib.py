"""Jobs in parallel processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from signal import SIG_IGN, SIGINT, signal
from types import ModuleType
from typing import Any

from hydra.core.utils import JobReturn

from cfsp.checks import check_integer
from hydra_plugins.cfsp_launchers._base import SweepJob, SweepLauncher, need


class JoblibLauncher(SweepLauncher):
    """Runs jobs in worker processes of joblib (loky), each with its GPU and its share of the cores.

    Each worker is a pool of one process: a larger pool cannot give each process its own GPU, and loses all
    jobs when one dies. n_jobs: jobs at a time. threads: threads of a job; None divides the cores.
    """

    def __init__(self, n_jobs: int, threads: int | None = None) -> None:
        self.n_jobs, self.threads = n_jobs, threads

    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        loky = need("joblib.externals.loky", "joblib")
        check_integer("hydra.launcher.n_jobs", self.n_jobs, least=1)
        if self.threads is not None:
            check_integer("hydra.launcher.threads", self.threads, least=1)
        workers = min(self.n_jobs, len(jobs))
        threads = self.threads or threads_per_worker(workers, loky.cpu_count())
        gpus = visible_gpus()

        environments = [worker_environment(worker, threads, gpus) for worker in range(workers)]
        pools = [start(loky, environment) for environment in environments]
        waiting, running = iter(jobs), {}

        def begin(worker: int) -> None:
            if job := next(waiting, None):
                running[pools[worker].submit(job)] = worker, job

        try:
            for worker in range(workers):
                begin(worker)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, job = running.pop(future)
                    try:
                        yield job, future.result()
                    except loky.BrokenProcessPool:
                        yield job, job.lost("its process was killed, perhaps out of memory")
                        pools[worker] = start(loky, environments[worker])
                    begin(worker)
        finally:
            for pool in pools:
                pool.shutdown(kill_workers=bool(running))


def start(loky: ModuleType, environment: Mapping[str, str]) -> Any:
    """Start a worker that ignores Ctrl-C, which reaches all processes of a terminal: the launcher ends it."""
    return loky.ProcessPoolExecutor(1, env=environment, initializer=signal, initargs=(SIGINT, SIG_IGN))


def threads_per_worker(workers: int, cores: int) -> int:
    """Return OMP_NUM_THREADS if it is set, else an equal share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else max(1, cores // workers)


def visible_gpus() -> list[str]:
    """List the GPUs that a new process would see, by their names in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    import torch

    return [str(gpu) for gpu in range(torch.cuda.device_count())]


def worker_environment(worker: int, threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of worker 0, 1, ...: one GPU in turn, and its number of threads.

    They must be set before the process starts, because CUDA and OpenMP read them once. The worker sees its
    GPU as `cuda`.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["CFSP_PROGRESS"] = "off"  # bars of several processes in one terminal overwrite each other
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    return environment
