"""Sites: the places of a model where whole units can go, and how their weights are laid out.

Site "model.layers.3.attention" (4 units, 2 query heads of 16 channels each in a group)

q_proj  dim 0  span 32 ─┐
k_proj  dim 0  span 16 ─┼─ producers ──> 4 x 32 channels ──> consumer  o_proj  dim 1  span 32
v_proj  dim 0  span 16 ─┘
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """One axis of one weight that a site owns: unit u has `span` places from `offset + u * span`.

    `bias` says that the module's bias lies along this axis too and goes with the unit.
    """

    module: str
    dim: int
    span: int = 1
    offset: int = 0
    bias: bool = False

    def places(self, units: Iterable[int]) -> Tensor:
        """The places of these units on the axis. [units * span]"""
        starts = torch.tensor(list(units), dtype=torch.long) * self.span + self.offset
        return (starts[:, None] + torch.arange(self.span)).flatten()


@dataclass(frozen=True)
class Count:
    """An attribute that the model's own code reads and that surgery sets to kept units x `per_unit`."""

    module: str
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class Site:
    """A place where whole units can go."""

    name: str
    kind: str
    block: int
    block_module: str
    units: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    counts: tuple[Count, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        return self.producers + self.consumers

    @property
    def span(self) -> int:
        """Channels of one unit at the consumer's input."""
        return self.consumers[0].span


def unit_cost(model: nn.Module, site: Site) -> int:
    """The number of parameters that one unit takes with it."""
    cost = 0
    for member in site.members:
        weight = model.get_submodule(member.module).weight
        cost += member.span * (weight.numel() // weight.shape[member.dim] + member.bias)
    return cost


class UnitView:
    """The weights of one site, unit-major, in float32: what a criterion may see of a model."""

    def __init__(self, model: nn.Module, site: Site):
        self._model, self._site = model, site
        self.name, self.kind, self.units, self.span = site.name, site.kind, site.units, site.span

    def producers(self) -> list[Tensor]:
        """Weights that make a unit's activation. Each [units, member span, inputs]"""
        return [self._weight(member) for member in self._site.producers]

    def consumers(self) -> list[Tensor]:
        """Weights that read a unit's activation. Each [units, span, outputs]"""
        return [self._weight(member) for member in self._site.consumers]

    def members(self) -> list[Tensor]:
        return self.producers() + self.consumers()

    def _weight(self, member: Member) -> Tensor:
        weight = self._model.get_submodule(member.module).weight.detach().movedim(member.dim, 0)
        rows = weight[member.offset : member.offset + self.units * member.span]
        return rows.reshape(self.units, member.span, -1).float()
