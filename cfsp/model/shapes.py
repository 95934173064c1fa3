"""Shapes: the sizes of a model and of each of its blocks, read from the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.model.blocks import block_modules, layout_of, places_of, stacks_of
from cfsp.model.find_sites import axis_length, head_channels
from cfsp.model.weights import weight_of


@dataclass(frozen=True)
class BlockShape:
    """The sizes of one block.

    width: MLP neurons. heads: query heads. groups: key/value groups; as many as heads where each head has
    its own. heads and groups are None in families whose heads cannot be removed.
    """

    width: int
    heads: int | None = None
    groups: int | None = None

    @property
    def heads_per_group(self) -> int:
        """Query heads of one group; 0 in a block without attention."""
        return self.heads // self.groups if self.heads and self.groups else 0

    def fits_into(self, other: BlockShape) -> bool:
        """Return whether units of zeros make this block as large as the other one."""
        sizes = ((one.width, one.groups or 0, one.heads_per_group) for one in (self, other))
        return all(mine <= theirs for mine, theirs in zip(*sizes, strict=True))

    def named(self) -> dict[str, int]:
        """Return the sizes that are known, by their names in `cfsp.model.families`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model. hidden: channels of the residual stream. vocabulary: rows of the embedding."""

    hidden: int
    vocabulary: int
    head_dim: int
    blocks: tuple[BlockShape, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shapes:
        """Read the sizes from a model's weights, so those of a pruned model are its present ones.

        Raises ValueError if the model's family has no layout, or two stacks of blocks.
        """
        if len(stacks_of(model)) > 1:
            raise ValueError(
                f"a {type(model).__name__} has two stacks of blocks, and shapes and exports are of one; "
                "expected a decoder or an encoder, or allocator=uniform, which saves a plain checkpoint"
            )
        vocabulary, hidden = weight_of(model.get_input_embeddings()).shape
        head_dim = head_channels(model.config)
        blocks = tuple(block_shape(model, path, head_dim) for path in block_modules(model))
        return cls(hidden, vocabulary, head_dim, blocks)

    @property
    def alike(self) -> bool:
        """Whether all blocks have equal sizes."""
        return len({*self.blocks}) < 2

    @property
    def widest(self) -> BlockShape:
        """The sizes that every block fits into."""
        width = max(one.width for one in self.blocks)
        if self.blocks[0].heads is None:
            return BlockShape(width)
        groups = max(one.groups or 0 for one in self.blocks)
        return BlockShape(width, groups * max(one.heads_per_group for one in self.blocks), groups)


def block_shape(model: PreTrainedModel, path: str, head_dim: int) -> BlockShape:
    """Read the sizes of the block at `path`. head_dim: channels of one of its heads."""
    places = places_of(model, path)
    width = axis_length(model, f"{path}.{places['mlp'].consumer}", output=False)
    if "attention" not in places:
        return BlockShape(width)
    place = places["attention"]
    heads = axis_length(model, f"{path}.{place.consumer}", output=False) // head_dim
    if "groups" not in layout_of(model).names:
        return BlockShape(width, heads, heads)
    rows = sum(axis_length(model, f"{path}.{name}", output=True) for name in place.producers if heads)
    return BlockShape(width, heads, (rows // head_dim - heads) // 2)
