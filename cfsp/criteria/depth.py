"""Depth: score a whole block by how much it changes the hidden states."""

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

    metric: "cosine" is 1 - cos, the block influence of ShortGPT (Men et al. 2024, arXiv:2403.03853,
        eq. 1); "angular" is arccos(cos) / pi (Gromov et al. 2024, arXiv:2403.17887). Gromov et al.
        score runs of several blocks; here each block has its own score, and `schedule=iterative`
        scores the remaining blocks again after each step.
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
