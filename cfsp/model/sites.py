"""Sites: the places of a model where whole units can be removed, and the layout of their weights.

Site "model.layers.3.attention" (4 units, 2 query heads of 16 channels each in a group)

q_proj  dim 0  span 32 ─┐
k_proj  dim 0  span 16 ─┼─ producers ──> 4 x 32 channels ──> consumer  o_proj  dim 1  span 32
v_proj  dim 0  span 16 ─┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Masks = Mapping[tuple[str, int], Tensor]
"""(module, dim) -> mask of the places that stay on that axis of the module's weight. [axis], bool"""


@dataclass(frozen=True)
class Member:
    """One axis of one weight that a site owns. Unit u has the `span` places from `offset + u * span` on.

    bias: whether the module's bias lies along this axis too, so that its places are removed with the unit.
    """

    module: str
    dim: int
    span: int = 1
    offset: int = 0
    bias: bool = False

    def places(self, units: Iterable[int]) -> Tensor:
        """Return the places of these units on the axis. [units * span]"""
        starts = torch.tensor(list(units), dtype=torch.long) * self.span + self.offset
        return (starts[:, None] + torch.arange(self.span)).flatten()


@dataclass(frozen=True)
class Count:
    """An attribute that the model's own code reads and that shrinks in proportion to the units.

    "config.x" is attribute x of the config, changed for this module only.
    """

    module: str
    attribute: str


def kind_of(site: str) -> str:
    """Return the kind of a site, the last part of its name: "mlp" for "model.layers.3.mlp"."""
    return site.rpartition(".")[2]


class OfKind:
    """The meaning of a site's kind, for everything that has one: sites, views of them, edits.

    The kinds are mlp, attention, cross_attention, query_heads, block and hidden; see
    `cfsp.model.find_sites.site_kinds`.
    """

    kind: str

    @property
    def units_are_neurons(self) -> bool:
        """Whether a unit is a neuron of an MLP, the last part of a block that adds to the residual stream."""
        return self.kind == "mlp"

    @property
    def units_are_whole_heads(self) -> bool:
        """Whether a unit is a head, or a key/value group with all of its query heads."""
        return self.kind in ("attention", "cross_attention")

    @property
    def units_are_blocks(self) -> bool:
        """Whether a unit is a whole block, not places on the axes of weights."""
        return self.kind == "block"

    @property
    def units_are_residual_channels(self) -> bool:
        """Whether a unit is a channel of the residual stream, which all blocks share."""
        return self.kind == "hidden"

    @property
    def is_a_width(self) -> bool:
        """Whether the units are single places of a matrix, so that any number of them may stay."""
        return self.units_are_neurons or self.units_are_residual_channels


@dataclass(frozen=True)
class Site(OfKind):
    """A place where whole units can be removed.

    block: the block's index; None for a site that belongs to no single block.
    blocks: path of the block that it is in; if the units are blocks, the paths of all blocks.
    adapters: rows of lora_B beside the rows of a layer, columns of lora_A beside its columns, where adapters
        lie in the model. They go with the units, but no score and no size counts them.
    groups: number of equal runs of units that keep equal numbers (query heads: the key/value groups).
    norms: modules that read the residual stream, if the units are its channels.
    whole: the module that is removed with the last unit, if any.
    biased: the attention that adds to its scores a bias for each head, which all blocks share, if any.
    numbers: original indices of the remaining units, out of `before`; empty if none was removed.
    """

    name: str
    kind: str
    units: int
    block: int | None = None
    blocks: tuple[str, ...] = ()
    producers: tuple[Member, ...] = ()
    consumers: tuple[Member, ...] = ()
    adapters: tuple[Member, ...] = ()
    counts: tuple[Count, ...] = ()
    groups: int = 1
    norms: tuple[str, ...] = ()
    whole: str | None = None
    biased: str | None = None
    numbers: tuple[int, ...] = ()
    before: int = 0

    @property
    def members(self) -> tuple[Member, ...]:
        return self.producers + self.consumers

    @property
    def span(self) -> int:
        """Channels of one unit at the consumer's input."""
        return self.consumers[0].span if self.consumers else 1

    @property
    def may_go(self) -> bool:
        """Whether the site can lose all of its units."""
        return self.units_are_neurons or (self.units_are_whole_heads and self.whole is not None)
