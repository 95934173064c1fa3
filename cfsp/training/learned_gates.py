"""Gates with scores: masks on weights that are learned, unit by unit or tile by tile.

A gate is a parametrisation (`torch.nn.utils.parametrize`) of a linear layer's weight. Its scores are
therefore parameters of the model: the optimizer, `state_dict` and checkpoints see them. The gradient of a
mask passes straight through to its score: dL/dS = dL/dM, the sum of dL/dW' * W over all weights that the
score masks (Sanh et al., movement pruning, arXiv:2005.07683, section 3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cfsp.model.sites import Member


class StraightThrough(torch.autograd.Function):
    """1 where a score is above the threshold, else 0. The gradient passes as if it were the score."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        return (scores > threshold).to(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Rule(ABC):
    """How scores become a mask while it is learned."""

    @abstractmethod
    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        """Return the mask of scores, in [0, 1]. [scores] -> [scores]"""

    def final(self, scores: Tensor) -> Tensor:
        """Return the value of an open gate once masks are decided. [scores] -> [scores]"""
        return torch.ones_like(scores)

    @abstractmethod
    def openness(self, scores: Tensor) -> Tensor:
        """Return how open each gate is, in [0, 1], differentiable; same shape. Penalties are means of it."""


class Step(Rule):
    """M = 1{S > t}."""

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        return StraightThrough.apply(scores, threshold)

    def openness(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)


class Given(Step):
    """M = 1{S > t} for scores that are measured, not learned: they get no gradient."""

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        return (scores > threshold).to(scores)


class HardConcrete(Rule):
    """M = min(1, max(0, s (r - l) + l)) with a concrete random s (Louizos et al., L0, arXiv:1712.01312).

    In training the noise is drawn anew in every forward pass. Otherwise an open gate has the value without
    noise, clamp(sigmoid(S) (r - l) + l), and is closed if S <= t.
    """

    LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        if not training:
            return (scores > threshold).to(scores) * self.final(scores)
        noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
        return self.stretched(torch.sigmoid((noise.logit() + scores) / self.TEMPERATURE))

    def stretched(self, drawn: Tensor) -> Tensor:
        """Stretch values to [l, r], then clamp them to [0, 1]. [scores] -> [scores]"""
        return (drawn * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def final(self, scores: Tensor) -> Tensor:
        return self.stretched(torch.sigmoid(scores))

    def openness(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))


class Gate(nn.Module, ABC):
    """A mask on the weight of one linear layer.

    scores: one per unit or tile. threshold: set before each step. decided: the final mask, of the scores'
        shape; it replaces the rule as soon as the gate is settled. channels: final mask of the channels of
        the weight's axis `dim`; it closes units that other gates have closed.
    """

    scores: nn.Parameter
    threshold: Tensor
    decided: Tensor
    channels: Tensor

    def __init__(self, shape: Sequence[int], rule: Rule, start: float, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.rule, self.dim, self.settled, device = rule, dim, False, weight.device
        self.scores = nn.Parameter(torch.full(tuple(shape), start, device=device))
        self.register_buffer("threshold", torch.full((), -torch.inf, device=device))
        self.register_buffer("decided", torch.ones(tuple(shape), device=device))
        self.register_buffer("channels", torch.ones(weight.shape[dim], device=device))

    def open(self) -> Tensor:
        """Return the mask. [units] or [rows / tile, columns / tile], as the scores are"""
        if self.settled:
            return self.decided + 0 * self.scores  # a loss has a gradient even if all weights are frozen
        return self.rule.mask(self.scores, self.threshold, self.training)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight. [rows, columns] -> [rows, columns]"""
        masked = weight * self.spread(self.open()).to(weight.dtype)
        return masked * self.along(self.channels).to(weight.dtype) if self.settled else masked

    def settle(self) -> None:
        """Freeze the mask as it is now."""
        self.decided.copy_((self.scores > self.threshold) * self.rule.final(self.scores))
        self.settled = True

    @abstractmethod
    def reopen(self, member: Member, units: Sequence[int]) -> None:
        """Open the final mask for these units."""

    def along(self, values: Tensor) -> Tensor:
        """Return values of the channels, to broadcast to the weight. [axis] -> [1, axis] or [axis, 1]"""
        return values.unsqueeze(1 - self.dim)

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """Return a value per score, to broadcast to the weight. [scores] -> [rows, columns] or one axis"""

    @abstractmethod
    def mean_of_units(self, values: Tensor, member: Member, units: int) -> Tensor:
        """Return the mean of the values over each unit's places on the member's axis. [units]"""

    @abstractmethod
    def mean_of_weights(self, weight: Tensor) -> Tensor:
        """Return the mean of a weight over the places of each score. [rows, columns] -> [scores]"""


class UnitGate(Gate):
    """One score per unit of a site, on the channels that the consumer reads.

    A neuron whose column of the consumer is zero has no effect, whatever the rows of its producers are.
    """

    places: Tensor

    def __init__(self, member: Member, units: int, rule: Rule, start: float, weight: Tensor) -> None:
        super().__init__([units], rule, start, weight, member.dim)
        self.span = member.span
        places = torch.full((weight.shape[member.dim],), -1)
        places[member.places(range(units))] = torch.arange(units).repeat_interleave(member.span)
        self.register_buffer("places", places.to(weight.device), persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """Return the value of each channel's unit, 1 for other channels. [units] -> [1, axis] or [axis, 1]"""
        return self.along(torch.cat([values, values.new_ones(1)])[self.places])

    def reopen(self, member: Member, units: Sequence[int]) -> None:
        self.decided[[*units]] = 1

    def mean_of_units(self, values: Tensor, member: Member, units: int) -> Tensor:
        return values

    def mean_of_weights(self, weight: Tensor) -> Tensor:
        along = weight.movedim(self.dim, 0).mean(1)  # [axis]
        mine = self.places >= 0
        found = torch.zeros_like(self.scores, dtype=weight.dtype)
        return found.index_add_(0, self.places[mine], along[mine]) / self.span


class TileGate(Gate):
    """One score per square tile of a weight (Lagunas et al., block pruning, arXiv:2109.04838)."""

    def __init__(self, tile: int, rule: Rule, start: float, weight: Tensor, dim: int) -> None:
        super().__init__([side // tile for side in weight.shape], rule, start, weight, dim)
        self.tile = tile

    def spread(self, values: Tensor) -> Tensor:
        """Return the value of each weight's tile. [rows / tile, columns / tile] -> [rows, columns]"""
        return values.repeat_interleave(self.tile, 0).repeat_interleave(self.tile, 1)

    def reopen(self, member: Member, units: Sequence[int]) -> None:
        tiles = (member.places(units) // self.tile).unique().to(self.decided.device)
        self.decided.movedim(member.dim, 0)[tiles] = 1

    def mean_of_units(self, values: Tensor, member: Member, units: int) -> Tensor:
        along = values.movedim(member.dim, 0).mean(1).repeat_interleave(self.tile)  # [axis]
        places = member.places(range(units)).to(along.device)
        return along[places].view(units, -1).mean(1)

    def mean_of_weights(self, weight: Tensor) -> Tensor:
        rows, columns = self.scores.shape
        return weight.view(rows, self.tile, columns, self.tile).mean((1, 3))


def lowest_kept(scores: Tensor, share: float) -> Tensor:
    """Return the threshold that this share of the scores does not exceed. []"""
    gone = min(int(share * scores.numel() + 1e-6), scores.numel())
    if not gone:
        return scores.new_tensor(-torch.inf)
    return scores.detach().flatten().kthvalue(gone).values
