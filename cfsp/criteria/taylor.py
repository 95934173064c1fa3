"""Taylor: how much the loss would change, estimated from gradients (LLM-Pruner)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cfsp.checks import check_choice
from cfsp.criteria.base import EVERY_KIND, Criterion
from cfsp.model.views import UnitView
from cfsp.statistics.base import STATISTICS
from cfsp.statistics.gradients import GradientStatistic

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda members: members.sum(0),
    "mean": lambda members: members.mean(0),
    "max": lambda members: members.amax(0),
    "prod": lambda members: members.prod(0),
    "first": lambda members: members[0],
    "last": lambda members: members[-1],
}
"""Name -> reduction over a unit's weights. [weights, units] -> [units]"""


def orders() -> list[str]:
    """What a weight may count for: the gradient statistics that are called taylor_*."""
    known = [name for name, kind in STATISTICS.items() if issubclass(kind, GradientStatistic)]
    return [name.removeprefix("taylor_") for name in known if name.startswith("taylor_")]


@dataclass(frozen=True)
class Taylor(Criterion):
    """score_u = reduction over the unit's weights W of the change of the loss L if W_u became 0.

    With g = E[dL/dw] and h = E[(dL/dw)^2] over samples, sums over the places k of the unit in W:

        vectorize  sum over the unit's rows of |sum_k g_k w_k|
        first      sum_k |g_k w_k|
        second     sum_k h_k w_k^2
        mix        sum_k |g_k w_k - h_k w_k^2 / 2|

    Unit: nats per token. Ma et al. 2023 (LLM-Pruner), arXiv:2305.11627, eq. 3 to 5 (there eq. 5
    sums squares over samples, the code takes their mean). Reductions "first" and "last" take the
    first producer's or the consumer's weight alone. The paper's L1 and L2 baselines are `magnitude`
    with norm 1 or 2, its random one is `chance`.

    grouping: how weights of different width are added up under grouped-query attention. "aligned": per unit.
    "released": as the released code does, which folds the longer vector of channels onto the shorter,
    so that key/value group j gets the scores of query heads j, j + groups, ...

    Differs from the released code: `grouping` is "aligned" by default.
    """

    order: str = "first"
    reduction: str = "sum"
    grouping: str = "aligned"
    kinds: ClassVar[frozenset[str]] = EVERY_KIND

    def __post_init__(self) -> None:
        check_choice("order", self.order, orders())
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_choice("grouping", self.grouping, ("aligned", "released"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"taylor_{self.order}"})

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        spans = view.spans
        weights = stat[f"taylor_{self.order}"].double().split([view.units * span for span in spans])
        reduce = REDUCTIONS[self.reduction]
        if self.grouping == "aligned":
            return reduce(torch.stack([weight.view(view.units, -1).sum(1) for weight in weights]))
        channels = view.units * min(spans)
        folded = torch.stack([weight.view(-1, channels).sum(0) for weight in weights])
        return reduce(folded).view(view.units, -1).sum(1)
