"""Views: the weights of a site, arranged by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from cfsp.model.sites import Masks, Member, OfKind, Site
from cfsp.model.weights import weight_of, whole_weight


def unit_weights(model: nn.Module, site: Site) -> Iterator:
    """Yield the weights that belong to a site's units, each once.

    If the units are places on an axis, it yields (weight, member) pairs. If they are blocks, it yields one
    list per parameter: the parameter of every block, or None if a block lacks it.
    """
    if site.units_are_blocks:
        blocks = [dict(model.get_submodule(path).named_parameters()) for path in site.blocks]
        for name in dict.fromkeys(name for block in blocks for name in block):
            yield [block.get(name) for block in blocks]
        return
    seen = {}  # holds the weights: one that is computed when read is gone otherwise, and its id is another's
    for member in site.members:
        weight = weight_of(model.get_submodule(member.module))
        if (id(weight), member.dim, member.offset) not in seen:  # tied embeddings are one weight
            seen[id(weight), member.dim, member.offset] = weight
            yield weight, member


def learned_weights(model: nn.Module, site: Site) -> Iterator:
    """Yield `unit_weights` without the embeddings and the head, whose gradients take too much memory."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    frozen = {id(module.weight) for module in ends if module is not None}
    for row in unit_weights(model, site):
        if row[0] is None or id(row[0]) not in frozen:
            yield row


def unit_cost(model: nn.Module, site: Site) -> int:
    """Return the number of parameters that are removed with one unit (blocks: on average)."""
    if site.units_are_blocks:
        rows = unit_weights(model, site)
        return sum(weight.numel() for row in rows for weight in row if weight is not None) // site.units
    return sum(
        member.span * (weight.numel() // weight.shape[member.dim] + member.bias)
        for weight, member in unit_weights(model, site)
    )


class UnitView(OfKind):
    """The weights of one site in float32, units first. A criterion sees only this part of a model.

    masks: the places that are left on the axes while cuts are held as gates.
    units: number of units left.
    weights: module -> weight to use instead of the module's own (a consumer's refitted weight).
    groups: number of equal runs of units that keep equal numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        site: Site,
        masks: Masks | None = None,
        units: int | None = None,
        weights: Mapping[str, Tensor] | None = None,
        groups: int | None = None,
    ):
        self._model, self._site, self._masks, self._weights = model, site, masks or {}, weights or {}
        self.name, self.kind = site.name, site.kind
        self.units = site.units if units is None else units
        self.groups = site.groups if groups is None else groups

    @property
    def span(self) -> int:
        """Channels of one unit at the consumer's input."""
        member = self._site.consumers[0]
        return len(left_places(member, self._site.units, self._masks)) // self.units

    @property
    def spans(self) -> list[int]:
        """Places of one unit on the axis of each learned weight; 1 for each if the units are blocks."""
        rows = learned_weights(self._model, self._site)
        if self.units_are_blocks:
            return [1 for _ in rows]
        return [len(left_places(member, self._site.units, self._masks)) // self.units for _, member in rows]

    def producers(self) -> list[Tensor]:
        """Return the weights that make a unit's activation. Each [units, member span, inputs]"""
        return [self._weight(member) for member in self._site.producers]

    def consumers(self) -> list[Tensor]:
        """Return the weights that read a unit's activation. Each [units, span, outputs]"""
        return [self._weight(member) for member in self._site.consumers]

    def members(self) -> list[Tensor]:
        """Return the producers, then the consumers. Each [units, member span, inputs or outputs]"""
        return self.producers() + self.consumers()

    def totals(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum an elementwise function over all weights of each unit, one weight at a time. [units]"""
        if self.units_are_blocks:
            rows = unit_weights(self._model, self._site)
            zero = torch.zeros((), device=next(self._model.parameters()).device)
            sums = [
                torch.stack([zero if w is None else function(w.detach().float()).sum() for w in row])
                for row in rows
            ]
            return reduce(add, sums)[self._masks.get((self._site.name, 0), slice(None))]
        members = (member for _, member in unit_weights(self._model, self._site))
        return reduce(add, (function(self._weight(member)).flatten(1).sum(1) for member in members))

    def _weight(self, member: Member) -> Tensor:
        """Return the remaining places of one weight, in float32. [units, member span, the other axis]"""
        own = self._weights.get(member.module)
        weight = (whole_weight(self._model, member.module) if own is None else own).movedim(member.dim, 0)
        rows = weight[left_places(member, self._site.units, self._masks).to(weight.device)].float()
        other = self._masks.get((member.module, 1 - member.dim))
        if other is not None and rows.dim() > 1:
            rows = rows[:, other.to(rows.device)]
        return rows.reshape(self.units, -1, rows[0].numel())


def left_places(member: Member, units: int, masks: Masks) -> Tensor:
    """Return the indices of a member's places that are left on its axis. [places], integers"""
    places = torch.arange(member.offset, member.offset + units * member.span)
    mask = masks.get((member.module, member.dim))
    return places if mask is None else places[mask[places]]
