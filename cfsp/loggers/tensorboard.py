"""TensorBoard: curves and final metrics as scalars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from cfsp.loggers.base import Job, Logger
from cfsp.records.record import Record


@dataclass
class TensorBoard(Logger):
    """Writes to `<results>/tensorboard/<group>/<id>`."""

    writer: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError("logger=tensorboard: the package is not installed; pip install tensorboard")

    def open(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(str(job.results / "tensorboard" / (job.group or "") / job.id))

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, record: Record | None) -> None:
        self.writer.close()
