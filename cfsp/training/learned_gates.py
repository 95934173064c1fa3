"""Learned gates: trained scores that become a mask on a weight, by unit or by tile.

A gate is a parametrisation (`torch.nn.utils.parametrize`) of a linear layer's weight. Its scores are
parameters of the model, so the optimizer, `state_dict`, checkpoints and FSDP see them. The mask passes
gradients straight through: dL/dS = dL/dM. For a mask on weights this is the sum of dL/dW' * W over the
elements of a score (Sanh et al., movement pruning, arXiv:2005.07683, section 3).
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
    """1 where a score is above a threshold, else 0. The gradient is that of the scores themselves."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        """Return the mask. [the scores' axes]"""
        return (scores > threshold).to(scores)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the scores [the scores' axes], and none of the threshold."""
        return grad_outputs[0], None


class Rule(ABC):
    """The rule by which scores become a mask."""

    @abstractmethod
    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        """Return the mask of scores, in [0, 1]. [the scores' axes]"""

    @abstractmethod
    def size(self, scores: Tensor) -> Tensor:
        """Return how open each gate is, differentiable. A penalty is its mean. [the scores' axes]"""


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

    In training, each forward pass draws new noise. Otherwise the mask is 1{E M > t}.
    """

    LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3

    def mask(self, scores: Tensor, threshold: Tensor, training: bool) -> Tensor:
        if not training:
            return (self.stretched(torch.sigmoid(scores)) > threshold).to(scores)
        noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
        drawn = torch.sigmoid((noise.logit() + scores) / self.TEMPERATURE)
        return self.stretched(drawn)

    def stretched(self, value: Tensor) -> Tensor:
        """Stretch values beyond [0, 1], then clamp them to it. [the values' axes]"""
        return (value * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)

    def size(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))


RULES: dict[str, Rule] = {"hard": Hard(), "soft": Soft(), "hard_concrete": HardConcrete()}


class Gate(nn.Module, ABC):
    """A mask on one weight. threshold: the pruner sets it before each step."""

    threshold: Tensor

    def __init__(self, shape: Sequence[int], rule: str, start: float, device: torch.device) -> None:
        super().__init__()
        self.rule = RULES[rule]
        self.scores = nn.Parameter(torch.full(tuple(shape), start, device=device))
        self.register_buffer("threshold", torch.full((), -torch.inf, device=device))

    def open(self) -> Tensor:
        """Return the mask of the scores. [the scores' axes]"""
        return self.rule.mask(self.scores, self.threshold, self.training)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight. [the weight's axes]"""
        return weight * self.spread(self.open()).to(weight.dtype)

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """Return the value of each score at every element that it stands for. [broadcasts to the weight]"""

    @abstractmethod
    def per_score(self, weight: Tensor) -> Tensor:
        """Return the mean of a weight's elements for each score. [the scores' axes]"""

    @abstractmethod
    def per_unit(self, values: Tensor, member: Member, units: int) -> Tensor:
        """Return the mean of the scores' values over the places of each unit on a member's axis. [units]"""


class UnitGate(Gate):
    """One score for each unit of a site, on the channels that its consumer reads.

    If a neuron's column of the consumer is zero, the model does not use the neuron.
    """

    places: Tensor

    def __init__(self, member: Member, units: int, rule: str, start: float, weight: Tensor) -> None:
        super().__init__([units], rule, start, weight.device)
        self.dim, self.axes, self.span = member.dim, weight.dim(), member.span
        places = torch.full((weight.shape[member.dim],), -1)
        places[member.places(range(units))] = torch.arange(units).repeat_interleave(member.span)
        self.register_buffer("places", places.to(weight.device), persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """Spread [units] -> [1, channels] or [channels, 1]; 1 where the axis belongs to another site"""
        whole = torch.cat([values, values.new_ones(1)])[self.places]
        return whole.unsqueeze(0) if self.dim else whole.unsqueeze(1)

    def per_score(self, weight: Tensor) -> Tensor:
        along = weight.movedim(self.dim, 0).mean(1)  # [axis]
        found = torch.zeros_like(self.scores, dtype=weight.dtype)
        mine = self.places >= 0
        found.index_add_(0, self.places[mine], along[mine])
        return found / self.span

    def per_unit(self, values: Tensor, member: Member, units: int) -> Tensor:
        return values


class TileGate(Gate):
    """One score for each tile of a weight (Lagunas et al., block pruning, arXiv:2109.04838)."""

    def __init__(self, tile: int, rule: str, start: float, weight: Tensor) -> None:
        self.tile = tile
        super().__init__([side // tile for side in weight.shape], rule, start, weight.device)

    def spread(self, values: Tensor) -> Tensor:
        """Spread [rows / tile, columns / tile] -> [rows, columns]"""
        return values.repeat_interleave(self.tile, 0).repeat_interleave(self.tile, 1)

    def per_score(self, weight: Tensor) -> Tensor:
        rows, columns = self.scores.shape
        return weight.view(rows, self.tile, columns, self.tile).mean((1, 3))

    def per_unit(self, values: Tensor, member: Member, units: int) -> Tensor:
        along = values.movedim(member.dim, 0).mean(1).repeat_interleave(self.tile)  # [axis]
        places = member.places(range(units)).to(along.device)
        return along[places].view(units, -1).mean(1)


def original_weight(module: nn.Module) -> Tensor:
    """Return the weight of a layer with a gate, before its mask. [the weight's axes]"""
    parametrized = module.parametrizations
    assert isinstance(parametrized, nn.ModuleDict), "`gates_of` adds one"
    weight = parametrized["weight"].original
    assert isinstance(weight, Tensor), "the gate is on one tensor"
    return weight
