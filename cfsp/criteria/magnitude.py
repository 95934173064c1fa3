"""Magnitude: how large a unit's weights are; needs no calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from cfsp.checks import check_choice, check_number
from cfsp.criteria.base import EVERY_KIND, IN_BLOCKS, Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class Magnitude(Criterion):
    """score_u = p-norm of the unit's weights (no unit).

    weights: "all" counts every weight that is removed with the unit; "consumers" only those that
        read its activation, as the `mag_sp` baselines of FLAP and CFSP do.
    norm: p, usually 2 or 1.
    """

    norm: float = 2.0
    weights: str = "all"

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, ("all", "consumers"))
        check_number("norm", self.norm, least=1)

    @property
    def kinds(self) -> frozenset[str]:
        return EVERY_KIND if self.weights == "all" else IN_BLOCKS

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        if self.norm > 2:
            self.check_powers(view)
        if self.weights == "all":
            return self.powers(view, self.norm) ** (1 / self.norm)
        flat = torch.cat([weight.flatten(1) for weight in view.consumers()], dim=1)  # [units, weights]
        return flat.norm(p=self.norm, dim=1)

    def powers(self, view: UnitView, p: float) -> Tensor:
        """Return sum |w|^p over each unit's weights. [units]"""
        if self.weights == "all":
            return view.totals(lambda weight: weight.abs() ** p)
        return reduce(add, ((weight.abs() ** p).flatten(1).sum(1) for weight in view.consumers()))

    def check_powers(self, view: UnitView) -> None:
        """Raise ValueError if a power overflows, or a unit with nonzero weights underflows to zero."""
        powers = self.powers(view, self.norm)
        if not powers.isfinite().all() or (powers[self.powers(view, 1.0) > 0] == 0).any():
            raise ValueError(
                f"norm={self.norm:g}: powers of weights of {view.name} over- or underflow; expected 1 or 2"
            )
