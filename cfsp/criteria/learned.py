"""Learned: the scores that a schedule learns in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class Learned(Criterion):
    """Stands for the scores of a schedule that trains (movement, lorashear); it scores nothing by itself."""

    learned: ClassVar[bool] = True

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        """Raise ValueError: only a schedule that trains has these scores [units]."""
        raise ValueError(
            f"{view.name}: criterion=learned has no scores of its own; expected schedule=movement or "
            "lorashear"
        )
