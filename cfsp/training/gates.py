"""Gates that learn: scores that become a mask on weights, unit by unit or tile by tile.

A gate is a parametrisation (`torch.nn.utils.parametrize`) of a linear layer's weight, so its scores are
parameters
of the model: the optimiser, `state_dict`, checkpoints and FSDP see them. The mask passes gradients straight
    through: dL/dS = dL/dM, which for a mask on weights is the sum of dL/dW' * W over what one score stands
    for (Sanh et al., movement pruning, arXiv:2005.07683, section 3).
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
    """1 where a score is above a threshold, else 0; the gradient passes as if it were the score itself."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        return (scores > threshold).to(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Rule(ABC):
    """How scores become a mask."""

    @abstractmethod
    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        """The mask of some scores, in [0, 1]; of the scores' shape."""

    @abstractmethod
    def size(self, scores: Tensor) -> Tensor:
        """How open each gate is, differentiable: what a penalty takes the mean of; of the scores' shape."""


class Hard(Rule):
    """M = 1{S > t} (movement pruning)."""

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        return StraightThrough.apply(scores, threshold)

    def size(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)


class Soft(Rule):
    """M = 1{sigmoid(S) > t} (soft movement pruning)."""

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        return StraightThrough.apply(scores, torch.logit(threshold))

    def size(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)


class HardConcrete(Rule):
    """M = min(1, max(0, s (r - l) + l)), s a concrete variable (Louizos et al., L0, arXiv:1712.01312).

    Noise is drawn for each forward pass in training; elsewhere the mask is 1{E M > t}, of zeros and ones.
    """

    LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        if not training:
            return (self.stretched(torch.sigmoid(scores)) > threshold).to(scores)
        noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
        drawn = torch.sigmoid((noise.logit() + scores) / self.TEMPERATURE)
        return self.stretched(drawn)

    def stretched(self, value: Tensor) -> Tensor:
        """Stretched beyond [0, 1] and cut off there; of the value's shape."""
        return (value * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def size(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))


RULES: dict[str, Rule] = {"hard": Hard(), "soft": Soft(), "hard_concrete": HardConcrete()}


class Gate(nn.Module, ABC):
    """A mask on one weight. scores: a parameter; threshold: set from outside before each step."""

    def __init__(self, shape: Sequence[int], rule: str, start: float, device: torch.device) -> None:
        super().__init__()
        self.rule = RULES[rule]
        self.scores = nn.Parameter(torch.full(tuple(shape), start, device=device))
        self.register_buffer("threshold", torch.full((), -torch.inf, device=device))

    def open(self) -> Tensor:
        """The mask of the scores; of their shape."""
        return self.rule.mask(self.scores, self.threshold, self.training)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight; of the weight's shape."""
        return weight * self.spread(self.open()).to(weight.dtype)

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """A value of each score, wherever the score counts; broadcasts to the weight's shape."""


class UnitGate(Gate):
    """One score for each unit of a site, on the channels that its consumer reads.

    A neuron whose column of the consumer is zero has no part in the model, whatever its producers' rows are.
    """

    def __init__(self, member: Member, units: int, rule: str, start: float, weight: Tensor) -> None:
        super().__init__([units], rule, start, weight.device)
        self.dim, self.axes, self.span = member.dim, weight.dim(), member.span
        places = torch.full((weight.shape[member.dim],), -1)
        places[member.places(range(units))] = torch.arange(units).repeat_interleave(member.span)
        self.register_buffer("places", places.to(weight.device), persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """[units] -> [1, channels] or [channels, 1]; 1 where the axis belongs to another site"""
        whole = torch.cat([values, values.new_ones(1)])[self.places]
        return whole.unsqueeze(0) if self.dim else whole.unsqueeze(1)


class TileGate(Gate):
    """One score for each tile of a weight (Lagunas et al., block pruning, arXiv:2109.04838)."""

    def __init__(self, tile: int, rule: str, start: float, weight: Tensor) -> None:
        self.tile = tile
        super().__init__([side // tile for side in weight.shape], rule, start, weight.device)

    def spread(self, values: Tensor) -> Tensor:
        """[rows / tile, columns / tile] -> [rows, columns]"""
        return values.repeat_interleave(self.tile, 0).repeat_interleave(self.tile, 1)
