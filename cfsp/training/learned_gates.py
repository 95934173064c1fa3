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
    """The mask as it is. The gradient passes as if the mask were the score."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return mask.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Rule(ABC):
    """How scores become a mask while it is learned."""

    @abstractmethod
    def value(self, scores: Tensor, mask: Tensor, training: bool) -> Tensor:
        """Return what weights are multiplied by, in [0, 1]: 0 where the mask is. [scores] -> [scores]"""

    def final(self, scores: Tensor) -> Tensor:
        """Return the value of an open gate once masks are decided. [scores] -> [scores]"""
        return torch.ones_like(scores)

    @abstractmethod
    def openness(self, scores: Tensor) -> Tensor:
        """Return how open each gate is, in [0, 1], differentiable; same shape. Penalties are means of it."""


class Step(Rule):
    """An open gate is 1."""

    def value(self, scores: Tensor, mask: Tensor, training: bool) -> Tensor:
        return StraightThrough.apply(scores, mask)

    def openness(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)


class Given(Step):
    """An open gate is 1; scores are measured, not learned: they get no gradient."""

    def value(self, scores: Tensor, mask: Tensor, training: bool) -> Tensor:
        return mask


class HardConcrete(Rule):
    """An open gate is min(1, max(0, s (r - l) + l)), s concrete and random (L0, arXiv:1712.01312).

    In training the noise is drawn anew in every forward pass. Otherwise an open gate has the value without
    noise, clamp(sigmoid(S) (r - l) + l).
    """

    LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3

    def value(self, scores: Tensor, mask: Tensor, training: bool) -> Tensor:
        if not training:
            return mask * self.final(scores)
        noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
        drawn = self.stretched(torch.sigmoid((noise.logit() + scores) / self.TEMPERATURE))
        return drawn + (mask * drawn - drawn).detach()  # the gradient passes a closed gate too

    def stretched(self, drawn: Tensor) -> Tensor:
        """Stretch values to [l, r], then clamp them to [0, 1]. [scores] -> [scores]"""
        return (drawn * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def final(self, scores: Tensor) -> Tensor:
        return self.stretched(torch.sigmoid(scores))

    def openness(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))


class Gate(nn.Module, ABC):
    """A mask on the weight of one linear layer.

    scores: one per unit or tile. mask: 1 where a gate is open, set before each step; the final value once
        the gate is settled. Both have the same shape.
    """

    scores: nn.Parameter
    mask: Tensor

    def __init__(self, shape: Sequence[int], rule: Rule, start: float, weight: Tensor) -> None:
        super().__init__()
        self.rule, self.settled = rule, False
        self.scores = nn.Parameter(torch.full(tuple(shape), start, device=weight.device))
        self.register_buffer("mask", torch.ones(tuple(shape), device=weight.device))

    def open(self) -> Tensor:
        """Return what the weights are multiplied by. [scores]"""
        if self.settled:
            return self.mask + 0 * self.scores  # a loss has a gradient even if all weights are frozen
        return self.rule.value(self.scores, self.mask, self.training)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight. [rows, columns] -> [rows, columns]"""
        return weight * self.spread(self.open()).to(weight.dtype)

    def settle(self) -> None:
        """Make the mask final. An open gate whose score is too low for a value stays open all the same."""
        final = self.rule.final(self.scores)
        self.mask.mul_(torch.where(final > 0, final, 1.0))
        self.settled = True

    @abstractmethod
    def close(self, member: Member, units: Tensor) -> None:
        """Close these units and open the others. units: mask of those to close [units]."""

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
        super().__init__([units], rule, start, weight)
        self.dim, self.span = member.dim, member.span
        places = torch.full((weight.shape[member.dim],), -1)
        places[member.places(range(units))] = torch.arange(units).repeat_interleave(member.span)
        self.register_buffer("places", places.to(weight.device), persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """Return the value of each channel's unit, 1 for other channels. [units] -> [1, axis] or [axis, 1]"""
        return torch.cat([values, values.new_ones(1)])[self.places].unsqueeze(1 - self.dim)

    def close(self, member: Member, units: Tensor) -> None:
        self.mask.copy_(~units)

    def mean_of_units(self, values: Tensor, member: Member, units: int) -> Tensor:
        return values

    def mean_of_weights(self, weight: Tensor) -> Tensor:
        along = weight.movedim(self.dim, 0).mean(1)  # [axis]
        mine = self.places >= 0
        found = torch.zeros_like(self.scores, dtype=weight.dtype)
        return found.index_add_(0, self.places[mine], along[mine]) / self.span


class TileGate(Gate):
    """One score per square tile of a weight (Lagunas et al., block pruning, arXiv:2109.04838).

    channels: 0 for channels of the axis `dim` whose unit is closed, whatever its tiles are. A tile of a
        closed unit still has a gradient, as if the unit were open: it may come back.
    """

    channels: Tensor

    def __init__(self, tile: int, rule: Rule, start: float, weight: Tensor, dim: int) -> None:
        super().__init__([side // tile for side in weight.shape], rule, start, weight)
        self.tile, self.dim = tile, dim
        self.register_buffer("channels", torch.ones(weight.shape[dim], device=weight.device))

    def spread(self, values: Tensor) -> Tensor:
        """Return each weight's value: its tile's, 0 in closed units. [tiles] -> [rows, columns]"""
        wide = values.repeat_interleave(self.tile, 0).repeat_interleave(self.tile, 1)
        whole = wide * self.channels.unsqueeze(1 - self.dim)
        return whole if self.settled else wide + (whole - wide).detach()

    def close(self, member: Member, units: Tensor) -> None:
        self.channels.fill_(1)
        self.channels[member.places(units.nonzero().flatten().tolist())] = 0

    def reopen(self, member: Member, units: Sequence[int]) -> None:
        """Open all tiles that touch these units."""
        tiles = (member.places(units) // self.tile).unique().to(self.mask.device)
        self.mask.movedim(member.dim, 0)[tiles] = 1

    def mean_of_units(self, values: Tensor, member: Member, units: int) -> Tensor:
        along = values.movedim(member.dim, 0).mean(1).repeat_interleave(self.tile)  # [axis]
        places = member.places(range(units)).to(along.device)
        return along[places].view(units, -1).mean(1)

    def mean_of_weights(self, weight: Tensor) -> Tensor:
        rows, columns = self.scores.shape
        return weight.view(rows, self.tile, columns, self.tile).mean((1, 3))


def lowest(scores: Tensor, share: float, least: float = math.inf) -> Tensor:
    """Return where the lowest scores are: at most this share of all, and none above `least`. [scores], bool

    Of equal scores the first come first. Nothing is sorted: there may be as many scores as weights.
    """
    found, count = scores <= least, int(share * len(scores) + 1e-6)
    if count >= found.count_nonzero():
        return found
    if count == 0:
        return torch.zeros_like(found)
    edge = scores.kthvalue(count).values
    found, equal = scores < edge, (scores == edge).nonzero().flatten()
    found[equal[: count - int(found.count_nonzero())]] = True
    return found
