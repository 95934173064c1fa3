"""Depth: how far a block moves its tokens; blocks that hardly move them can go as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cfsp.checks import check_choice
from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView

METRICS = ("cosine", "angular", "mse", "mae")


@dataclass(frozen=True)
class Depth(Criterion):
    """score_b = mean over tokens of the distance between block b's input and output (no unit).

    metric: "cosine" is the block influence of ShortGPT (Men et al. 2024, arXiv:2403.03853, eq. 1),
        1 - cos; "angular" the distance arccos(cos) / pi of Gromov et al. 2024, arXiv:2403.17887, who
        compare runs of several blocks as one: here each block stands for itself, and
        `schedule=iterative` looks again once some are gone.
    """

    metric: str = "cosine"
    kinds: ClassVar[frozenset[str]] = frozenset({"block"})

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, METRICS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"block_{self.metric}"})

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        return stat[f"block_{self.metric}"]
