"""Route makers: routers without a training of the model, from the inputs and activations of each MLP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.routers import LearnedRouter, OracleRouter, Router, ThresholdRouter, most
from cfsp.options import Checked
from cfsp.schedules.share_search import BlockTrial, greedy_shares

SEARCHES = ("none", "greedy")
"""How the shares of the matrices of one MLP are found."""


@dataclass(frozen=True)
class MLPSamples:
    """What calibration shows of one MLP. inputs: [tokens, hidden]. activations: [tokens, neurons].

    norms: of the weights that read each channel, for every producer [hidden] and the consumer [neurons].
    weights: of the first producer, a row per neuron [neurons, hidden]. trial: computes the block with masks.
    """

    inputs: Tensor
    activations: Tensor
    norms: list[Tensor]
    weights: Tensor
    trial: BlockTrial | None = None

    def ordered(self, order: Tensor) -> MLPSamples:
        """Return the same of an MLP whose neurons are in another order. order: [neurons]"""
        norms = [*self.norms[:-1], self.norms[-1][order]]
        activations, weights = self.activations[:, order], self.weights[order]
        return replace(self, activations=activations, norms=norms, weights=weights)


@dataclass(frozen=True, kw_only=True)
class RouteMaker(Checked, ABC):
    """Makes the router of one MLP. expert_size: neurons that are chosen together."""

    expert_size: int = 32

    def __post_init__(self) -> None:
        check_integer("expert_size", self.expert_size, least=1)

    @abstractmethod
    def make(self, samples: MLPSamples, active: float, seed: int) -> Router:
        """Return a router that uses about this share of the units."""

    def top(self, neurons: int, active: float) -> int:
        """Return the number of experts to use."""
        return max(1, round(active * neurons / self.expert_size))


@dataclass(frozen=True, kw_only=True)
class Oracle(RouteMaker):
    """The experts with the largest sum of |activation|; it computes all of them to know (2110.01786).

    It saves only what the consumer reads, and shows what a perfect predictor of these experts would reach.
    """

    def make(self, samples: MLPSamples, active: float, seed: int) -> Router:
        return OracleRouter(self.expert_size, self.top(samples.activations.shape[1], active))


@dataclass(frozen=True, kw_only=True)
class Threshold(RouteMaker):
    """Zeroes inputs of each matrix below a threshold, the quantile of calibration: TEAL (arXiv:2408.14690).

    weighted: by the norm of the weights that read the input. per_token: the same number of inputs for every
    token, those with the largest values, instead of a threshold. Both together are WINA (arXiv:2505.19427).

    search: none, all matrices have the same share; greedy, TEAL's search for a share per matrix of each MLP.

    Differs from the released code: only the MLPs are treated, so the search is among their matrices; it
    measures the block's error per token, relative to the output. Masks alone: there is no kernel for them.
    """

    expert_size: int = 1
    weighted: bool = False
    per_token: bool = False
    search: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("search", self.search, SEARCHES)
        if self.expert_size != 1:
            raise ValueError(f"expert_size={self.expert_size}: thresholds choose single inputs; expected 1")

    def make(self, samples: MLPSamples, active: float, seed: int) -> Router:
        @cache  # a candidate that loses is one of the next step too
        def threshold(place: int, share: float) -> float:
            return upper_part(self.scores(samples, place), share)

        def reading(shares: Sequence[float]) -> ThresholdRouter:
            found = self.router(samples, shares)
            if not self.per_token:
                values = [threshold(place, share) for place, share in enumerate(shares)]
                found.thresholds.copy_(torch.tensor(values))
            return found

        shares = [active] * len(samples.norms)
        if self.search == "greedy":
            trial = samples.trial
            assert trial is not None, "a walk runs the block"
            shares = greedy_shares(trial.sizes, active, lambda shares: trial.error(reading(shares)))
        return reading(shares)

    def scores(self, samples: MLPSamples, place: int) -> Tensor:
        """Return what a matrix's threshold is compared with. [tokens, channels]"""
        values = samples.activations if place == len(samples.norms) - 1 else samples.inputs
        return values.abs().float() * (samples.norms[place].float() if self.weighted else 1)

    def router(self, samples: MLPSamples, shares: Sequence[float]) -> ThresholdRouter:
        """Return a router in which each matrix reads its share. Its thresholds are 0."""
        hidden, neurons = samples.inputs.shape[1], samples.activations.shape[1]
        share = [*shares] if self.per_token else None
        router = ThresholdRouter(hidden, neurons, len(shares) - 1, weighted=self.weighted, share=share)
        for own, norms in zip(router.norms, samples.norms, strict=False):  # there are none without weights
            own.copy_(norms)
        return router.to(samples.inputs.device)


def upper_part(scores: Tensor, share: float) -> float:
    """Return the threshold above which this share of the scores lies. [tokens, channels]"""
    rank = round((1 - share) * scores.numel())
    return float(scores.flatten().kthvalue(rank).values) if rank else -1.0  # above which all lie


@dataclass(frozen=True, kw_only=True)
class Predictor(RouteMaker):
    """A small network that is trained to name the experts from the MLP's input, and takes the best of them.

    MoEfication (arXiv:2110.01786): two layers with a tanh; targets are an expert's sum of |activation|, over
    the largest of the token. Without `hidden` the first layer begins with the means of the experts'
    normalised rows in the first producer and the second with the identity.
    Deja Vu (arXiv:2310.17157): expert_size=1, no tanh; targets are the neurons that are active and among the
    asked share with the largest |activation|.

    hidden: width between the layers; None: one per expert. signs: Deja Vu's targets.
    """

    hidden: int | None = None
    signs: bool = False
    epochs: int = 10
    learning_rate: float = 1e-2
    batch_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            check_integer(name, getattr(self, name), least=1)
        if self.hidden is not None:
            check_integer("hidden", self.hidden, least=1)
        check_number("learning_rate", self.learning_rate, least=0)

    def make(self, samples: MLPSamples, active: float, seed: int) -> Router:
        x, h = samples.inputs.float(), samples.activations.float()
        sums = h.abs().view(len(h), -1, self.expert_size).sum(2)  # [tokens, experts]
        top, experts = self.top(h.shape[1], active), sums.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            options: dict[str, Any] = {"hidden": self.hidden or experts, "tanh": not self.signs}
            router = LearnedRouter(
                x.shape[1], experts, self.expert_size, normalised=not self.signs, top=top, **options
            ).to(x.device)
            if self.hidden is None and router.first is not None:
                rows = F.normalize(samples.weights.float(), dim=1)
                router.first.weight.data = rows.view(experts, -1, x.shape[1]).mean(1)
                router.last.weight.data = torch.eye(experts, device=x.device)
            self.train(router, x, self.targets(sums, top))
        return router

    def targets(self, sums: Tensor, top: int) -> Tensor:
        """Return what the network is to predict, in [0, 1]. [tokens, experts] -> the same shape"""
        if not self.signs:
            return sums / sums.amax(1, keepdim=True).clamp_min(1e-12)
        least = sums.topk(top, dim=1).values[:, -1:]
        return ((sums >= least) & (sums > 0)).float()  # with ReLU many are 0

    def train(self, router: LearnedRouter, x: Tensor, targets: Tensor) -> None:
        """Minimise the cross-entropy; rare experts weigh more with `signs`, as in Deja Vu."""
        rare = float(targets.mean()) + 0.005 if self.signs else None
        fit_router(router, x, targets, self.epochs, self.batch_size, self.learning_rate, rare)


def fit_router(
    router: LearnedRouter,
    x: Tensor,
    targets: Tensor,
    epochs: int = 10,
    batch_size: int = 512,
    learning_rate: float = 1e-2,
    rare: float | None = None,
) -> None:
    """Train a router to predict targets by their cross-entropy. Chance: torch's generator.

    x: [tokens, inputs]. targets: [tokens, experts], in [0, 1]. rare: weight of a target of 0 beside one of 1.
    """
    optimizer = torch.optim.AdamW(router.parameters(), lr=learning_rate, weight_decay=0.0)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch_size):
                wanted = targets[rows.to(x.device)]
                weight = None if rare is None else wanted * (1 - rare) + rare
                logits = router.logits(x[rows.to(x.device)])
                loss = F.binary_cross_entropy_with_logits(logits, wanted, weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    router.requires_grad_(False)


def most_active(samples: MLPSamples, size: int, active: float) -> Tensor:
    """Return which experts are among the asked share by what they add to the output. [tokens, experts]

    An expert adds about the sum of |activation| times the norm of the weights that read it. Tokens of all
    magnitudes count alike.
    """
    weight = samples.norms[-1].to(samples.activations.device)
    sums = (samples.activations.float().abs() * weight).view(len(samples.activations), -1, size).sum(2)
    return most(sums, max(1, round(active * sums.shape[1]))).float()
