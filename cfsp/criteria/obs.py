"""OBS: keep the units that the others cannot replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView
from cfsp.statistics.moments import MOMENTS
from cfsp.statistics.regression import (
    SCALES,
    centred,
    cholesky,
    damping,
    own_output,
    removal_path,
    swap,
)

METRICS = ("plain", "fisher")
"""What an error of the consumer's outputs costs: its square, or an estimate of the loss."""

ONE_BY_ONE = 1024
"""With at most so many channels, units are removed one by one unless `share` is set."""


@dataclass(frozen=True, kw_only=True)
class OBS(Criterion):
    """The optimal brain surgeon over whole units, greedy: remove the cheapest, refit the others, repeat.

    A unit costs tr(W_P^T [(H^-1)_PP]^-1 W_P). P are its channels (of a key/value group: those of all its
    query heads), H is the damped second moment of the consumer's input; H^-1 and W are updated after
    every removal.

    score_u = highest cost of the removals up to u's own, per parameter of a unit; the units that are
    removed last score best. Unit: squared output per parameter, by `tokens=relative` weighted;
    by `metric=fisher` nats per token (of a classifier: per label) and parameter.

    Hassibi and Stork 1993; whole columns and heads: Kurtic et al. 2023 (ZipLM, arXiv:2302.04089),
    Meng et al. 2024 (OSSCAR, arXiv:2403.12983).

    ridge: damping, relative to the mean or the median of H's diagonal (`scale`). It pulls towards the weights
        as they are, which keeps the classic formula exact without a target.
    metric: how an error d of the consumer's outputs counts. "plain": |d|^2. "fisher": d^T G d / 2, damped,
        where G is the mean g g^T of the loss's gradients by the outputs: costs then estimate the loss, so
        those of different sites compare (van der Ouderaa et al. 2023, LLM Surgeon, arXiv:2312.17244).
    share: fraction of the remaining units to remove per step; 0: one by one; None: 0 up to 1,024
        channels, else 1/32.
    constant: assume that a bias is fitted too (`compensation.constant`), so a channel's mean costs nothing.
    swaps: at most so many exchanges of a kept and a removed unit after the greedy choice, as long as one
        lowers its error; each factorises H again.
    tokens: as the compensation's: how their errors count. With "relative" costs of different sites do not
        compare.
    """

    ridge: float = 1e-2
    scale: str = "mean"
    share: float | None = None
    constant: bool = False
    swaps: int = 0
    metric: str = "plain"
    tokens: str = "equal"

    def __post_init__(self) -> None:
        check_choice("criterion metric", self.metric, METRICS)
        check_number("criterion ridge", self.ridge, least=0)
        if not self.ridge:
            raise ValueError("criterion ridge=0: expected a number above 0")
        check_choice("criterion scale", self.scale, SCALES)
        check_choice("criterion tokens", self.tokens, MOMENTS)
        if self.tokens != "equal" and self.metric != "plain":
            raise ValueError(
                f"criterion tokens={self.tokens} with metric={self.metric}: the gradients of the loss know "
                "already what a norm divides by; expected tokens=equal or metric=plain"
            )
        if self.share is not None:
            check_number("share", self.share, least=0)
            if self.share > 1:
                raise ValueError(f"share={self.share}: expected null or a share in [0, 1]")
        check_integer("swaps", self.swaps, least=0)

    @property
    def needs(self) -> frozenset[str]:
        of_loss = {"output_gradient_moment"} if self.metric == "fisher" else set()
        return frozenset({MOMENTS[self.tokens], "input_tokens"} | of_loss)

    def check_target(self, target: str) -> None:
        if self.tokens != "equal" and target != "own":
            raise ValueError(
                f"criterion tokens={self.tokens} knows no target; expected compensation.target=own, or "
                "criterion.tokens=equal"
            )

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        moment, penalty = self.damped(stat)
        inverse = torch.cholesky_inverse(cholesky(moment, self.ridge, f"{view.name}: criterion ridge"))
        best = weight = view.consumers()[0].flatten(0, 1).double()  # the optimum without a target
        if "target_moment" in stat:
            best = inverse @ self.pulled(weight, stat, penalty)
        share = (0 if len(moment) <= ONE_BY_ONE else 1 / 32) if self.share is None else self.share
        order, costs = removal_path(inverse, self.weighed(view, best, stat), view.span, share)
        parameters = sum(weight[0].numel() for weight in view.members())
        # Strictly rising: at a tie, top-k could keep a unit that was removed earlier.
        rising = costs.clamp_min(0).cummax(0).values * (1 + 1e-12 * torch.arange(len(costs)).to(costs))
        floor = torch.finfo(costs.dtype).tiny * torch.arange(1, len(costs) + 1).to(costs)
        return torch.empty_like(costs).index_copy(0, order, rising / parameters + floor)

    def refine(self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]) -> Sequence[int]:
        if not self.swaps:
            return keep
        moment, penalty = self.damped(stat)
        cross = self.pulled(view.consumers()[0].flatten(0, 1).double(), stat, penalty)
        cross = self.weighed(view, cross, stat)
        return tuple(swap(moment, cross, keep, view.span, self.swaps, view.groups)[0])

    def damped(self, stat: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return H + ridge I [channels, channels], H centred if `constant`, and that ridge [scalar]."""
        moment = stat[MOMENTS[self.tokens]]
        moment = centred(moment, moment[:, :0])[0] if self.constant else moment[:-1, :-1].clone()
        penalty = damping(moment.diagonal(), self.ridge, self.scale)
        moment.diagonal().add_(penalty)
        return moment, penalty

    def pulled(self, weight: Tensor, stat: Mapping[str, Tensor], penalty: Tensor) -> Tensor:
        """Return C + ridge W: the damping pulls towards the weights as they are. [channels, outputs]"""
        moment, cross = stat[MOMENTS[self.tokens]], stat.get("target_moment")
        if cross is None:
            cross = own_output(moment, weight)
        return (centred(moment, cross)[1] if self.constant else cross[:-1]) + penalty * weight

    def weighed(self, view: UnitView, outputs: Tensor, stat: Mapping[str, Tensor]) -> Tensor:
        """Return outputs whose squares are costs by the metric. [channels, outputs]"""
        if self.metric == "plain":
            return outputs
        fisher = stat["output_gradient_moment"].double() / 2
        fisher = fisher + torch.diag(damping(fisher.diagonal(), self.ridge, self.scale).expand(len(fisher)))
        return outputs @ cholesky(fisher, self.ridge, f"{view.name}: output gradients: criterion ridge")
