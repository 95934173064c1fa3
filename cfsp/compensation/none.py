"""No compensation: a removed unit counts as zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cfsp.compensation.base import Compensation
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """A removed unit's activation counts as zero."""

    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        return {}
