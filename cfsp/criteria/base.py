"""The base class of criteria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from cfsp.model.views import UnitView
from cfsp.options import Checked

IN_BLOCKS = frozenset({"mlp", "attention", "cross_attention", "query_heads"})
EVERY_KIND = IN_BLOCKS | {"block", "hidden"}


class Criterion(Checked, ABC):
    """Scores the units of one site from their weights and the calibration statistics.

    Sees a `UnitView` of the site, never the model.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of the statistics that `score` reads: keys of `cfsp.STATISTICS`."""

    learned: ClassVar[bool] = False
    """Whether a schedule that trains learns the scores, so that `score` is never called."""

    kinds: ClassVar[frozenset[str]] = IN_BLOCKS
    """Kinds of sites whose units it can score."""

    @abstractmethod
    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        """Return a score per unit [units]; higher means keep. stat: statistic name -> [units * span]."""

    def refine(self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]) -> Sequence[int]:
        """Return the units to keep, as many as `keep`, which holds those of the best scores."""
        return keep

    def check_target(self, target: str) -> None:
        """Raise ValueError if it cannot work with this target of a compensation."""
