"""Learned: the scores that a schedule makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class Learned(Criterion):
    """Stands for a schedule's own choice of units; it scores nothing by itself.

    Schedules movement and lorashear learn scores of units in training; routing and routed_once choose units
    for every token.
    """

    learned: ClassVar[bool] = True

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        """Raise ValueError: only the schedule has these scores [units]."""
        raise ValueError(
            f"{view.name}: criterion=learned has no scores of its own; expected schedule=movement, "
            "lorashear, routing or routed_once"
        )
