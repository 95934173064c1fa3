"""Jobs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from hydra.core.utils import JobReturn

from hydra_plugins.cfsp_launchers._base import SweepJob, SweepLauncher


class SerialLauncher(SweepLauncher):
    """Runs one job after the other. Later jobs reuse the imports and texts in memory."""

    announces: ClassVar[bool] = True

    def run(self, jobs: Sequence[SweepJob]) -> Iterator[tuple[SweepJob, JobReturn]]:
        for job in jobs:
            self.sweep.announce(job.number, job.name)
            yield job, job()
