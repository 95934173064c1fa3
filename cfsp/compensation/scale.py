"""Scale: one factor for each kept unit, fitted to a target output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cfsp.checks import check_choice
from cfsp.compensation.base import TARGETS, Compensation, check_fitted
from cfsp.compensation.least_squares import moments
from cfsp.model.views import UnitView
from cfsp.statistics.regression import SCALES, channels, unit_factors


@dataclass(frozen=True, kw_only=True)
class Scale(Compensation):
    """s = argmin E|t - sum over kept u of s_u W_u^T x_u|^2 + ridge |s - 1|^2, folded into the consumer.

    W_u: the rows of the consumer that read unit u [span, outputs]. It learns one number per unit where
    `LeastSquares` learns a row of weights per channel, so few tokens are enough. GRASPrune (arXiv:2604.19398)
    trains such factors; here they have a closed form. At s = 1 the penalty is 0, so on the calibration tokens
    the error is never above that of no compensation.

    ridge: relative to the mean or the median (`scale`) of the diagonal of E[y y^T], y_u = W_u^T x_u.
    target: the output t to fit; see `LeastSquares`.
    """

    ridge: float = 1e-3
    scale: str = "mean"
    target: str = "own"
    needs = frozenset({"input_second_moment", "input_tokens"})
    rewrites = True

    def __post_init__(self) -> None:
        if self.ridge <= 0:
            raise ValueError(f"compensation ridge={self.ridge!r}: expected a number above 0")
        check_choice("scale", self.scale, SCALES)
        check_choice("target", self.target, TARGETS)

    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        weight = view.consumers()[0].flatten(0, 1).double()  # [channels, outputs]
        moment, cross = moments(stat, weight)
        places = channels(keep, view.span, moment.device)
        whose = f"{view.name}: compensation ridge"
        factors = unit_factors(moment, cross, weight, places, view.span, self.ridge, whose, self.scale)
        check_fitted(view.name, factors)
        consumer = weight[places] * factors.repeat_interleave(view.span)[:, None]
        return {"consumer": consumer.float().cpu()}
