"""Bridge: the MLP before a run of dropped blocks learns what the run added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cfsp.compensation.base import Compensation
from cfsp.compensation.least_squares import LeastSquares
from cfsp.model.views import UnitView


@dataclass(frozen=True, kw_only=True)
class Bridge(Compensation):
    """V = argmin E|t - V^T h|^2 + ridge |V - W|^2, for each run of dropped blocks.

    h: the inputs of the second linear layer of the MLP in the block before the run, in the pruned model.
    t: the output that moves the residual stream to the dense model's after the run. W: the weights as they
    are. All neurons stay, and no tensor is added. The runs are bridged in order, each on the stream that the
    earlier ones leave. A run at the beginning has no block before it and stays without a bridge.

    ReplaceMe (Shopkhoev et al. 2025, arXiv:2505.02819) fits a matrix T on the MLP's output and folds it in,
    V = W T: a special case of this. It fits each run in the dense model.

    ridge: relative to the mean or the median of H's diagonal (`scale`), with H = E[h h^T].
    """

    ridge: float = 1e-2
    scale: str = "median"
    kinds = frozenset({"block"})
    bridges = True

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ValueError(f"compensation ridge={self.ridge!r}: expected a number above 0")
        _ = self.fit  # it checks the other option

    @property
    def fit(self) -> LeastSquares:
        """The regression of a bridge."""
        return LeastSquares(ridge=self.ridge, scale=self.scale, towards="kept", target="residual")

    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return nothing for dropped blocks; for the MLP before them V as `consumer` [neurons, outputs]."""
        return {} if view.units_are_blocks else self.fit.compensate(view, stat, keep)
