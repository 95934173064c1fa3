"""Wanda-sp: weight times activation, averaged over a unit's channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class WandaSP(Criterion):
    """score_u = mean over channels c of mean_o |W_oc| sqrt(E[x_c^2])  (unit: the output's)

    The structured form of Wanda (Sun et al. 2023, arXiv:2306.11695) that FLAP (An et al. 2023,
    arXiv:2312.11983) compares with.

    Differs from the released code: an activation's scale is its root mean square over all tokens
    (there: the norm over one sample's tokens). This multiplies all scores by one factor.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"input_sq_mean"})

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        rms = stat["input_sq_mean"].sqrt().view(view.units, view.span)
        weight = sum(consumer.abs().mean(2) for consumer in view.consumers())  # [units, span]
        return (weight * rms).mean(1)
