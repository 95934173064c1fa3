"""What a compensation is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from cfsp.model.views import UnitView
from cfsp.options import Checked

TARGETS = ("own", "dense", "residual")
"""What a consumer should give: see `cfsp.compensation.least_squares`."""


class Compensation(Checked, ABC):
    """Fills the gap that removed units leave; the plan carries the outcome."""

    needs: frozenset[str] = frozenset()
    """Names of the statistics that `compensate` reads."""

    target: str = "own"
    """What the consumer should give; other than "own" takes a schedule that follows the dense model too."""

    rewrites: ClassVar[bool] = False
    """Whether it gives the consumer new weights, which only one site can do."""

    @abstractmethod
    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        """What stands for the units that are not in `keep`, by field of a `Cut`.

        stat: statistic name -> value. -> `fill` [units * span], `consumer` [kept * span, outputs], `bias`
        [outputs], as far as it gives them
        """
