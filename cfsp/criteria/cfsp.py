"""CFSP's fine-grained criterion: relative activation times relative weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import ClassVar

import torch
from torch import Tensor

from cfsp.checks import check_choice
from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class CFSP(Criterion):
    """Relative importance of a neuron, times its activation (Wang et al. 2024, arXiv:2409.13199).

    With n_c = sqrt(E[x_c^2]) of channel c, consumer W and producers V (gate, up; q, k, v):

        paper     S_c = n_c ( sum_o |W_oc| n_c / sum_c' |W_oc'| n_c'
                              + sum over producers of sum_j |V_cj| / sum_c' |V_c'j| )
        released  S_c = n_c (1 + number of producers) / (rows of W)

    score_u = mean of S_c over the unit's channels (the producers' terms: over their own span).
    Unit: that of the activation.

    "paper" normalises eq. 8 over the neurons that share an output or input channel. Read literally,
    over the neuron's own row, each producer's term would be the constant 1.

    Differs from the released code: there every |W| is divided by its sum over an axis and then
    averaged over that axis, which leaves 1 / rows whatever the weights are. All four of its local
    metrics therefore rank by n_c alone; "released" computes that in closed form, without the 0/0 of
    a dead neuron.
    """

    variant: str = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"input_sq_mean"})

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("paper", "released"))

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        norm = stat["input_sq_mean"].sqrt().view(view.units, view.span)
        if self.variant == "released":
            consumer = view.consumers()[0]
            return norm.mean(1) * (len(view.members()) / consumer.shape[2])
        factor = reduce(add, (relative(weight, norm) for weight in view.consumers()))  # [units, span]
        producers = reduce(add, (relative(weight).mean(1) for weight in view.producers()))  # [units]
        return (norm * (factor + producers[:, None])).mean(1)


def relative(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return sum_j s_c |W_cj| / sum_c' s_c' |W_c'j|: a channel's fractions of all columns, summed.

    scale: s; None: 1. Two matrix-vector products keep |W| the only temporary of the weight's size.

    [units, span, other], [units, span] -> [units, span]
    """
    size = weight.abs().flatten(0, 1)  # [channels, other]
    scale = size.new_ones(len(size)) if scale is None else scale.flatten().to(size)
    total = scale @ size
    inverse = torch.where(total > 0, 1 / total, 0)  # a column of zeros adds nothing
    return (scale * (size @ inverse)).view(weight.shape[:2])
