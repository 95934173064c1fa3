"""Padding: units of zeros, which change no output, and make blocks equal or widths round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.exports.streamed import StreamedWeight
from cfsp.model.blocks import block_modules, places_of
from cfsp.model.find_sites import axis, is_skipped
from cfsp.model.shapes import BlockShape
from cfsp.model.weights import weight_of

LLAMA_RUNS = {
    "self_attn.q_proj": (0, ("q",)),
    "self_attn.k_proj": (0, ("k",)),
    "self_attn.v_proj": (0, ("v",)),
    "self_attn.o_proj": (1, ("q",)),
    "mlp.gate_proj": (0, ("n",)),
    "mlp.up_proj": (0, ("n",)),
    "mlp.down_proj": (1, ("n",)),
}
"""Layer of a block of Llama -> the axis of its weight that runs over units, and what the units are."""


@dataclass(frozen=True)
class PaddedAxis:
    """One axis of a weight or a bias in a block. runs: the letters of `cfsp.model.families`, in order."""

    block: int
    dim: int
    runs: tuple[str, ...]


def padded_axes(model: PreTrainedModel) -> dict[str, PaddedAxis]:
    """Return name of a weight or a bias -> its axis that runs over units."""
    found = {}
    for block, path in enumerate(block_modules(model)):
        for kind, place in places_of(model, path).items():
            consumer = f"{path}.{place.consumer}"
            inputs = axis(model.get_submodule(consumer), output=False)
            found[f"{consumer}.weight"] = PaddedAxis(block, inputs, ("n",) if kind == "mlp" else ("q",))
            if kind == "attention" and is_skipped(model, kind, path):
                continue
            for name, runs in place.producers.items():
                module = model.get_submodule(f"{path}.{name}")
                found[f"{path}.{name}.weight"] = PaddedAxis(block, axis(module, output=True), tuple(runs))
                found[f"{path}.{name}.bias"] = PaddedAxis(block, 0, tuple(runs))
    return found


def pad_axis(
    weight: Tensor, dim: int, runs: Sequence[str], have: BlockShape, want: BlockShape, head_dim: int
) -> Tensor:
    """Put units of zeros after those that a weight has. -> [its axes], longer on `dim`

    New query heads of a group come after the group's own, so no head changes its group.
    """
    grids = [(places_of_run(run, have, head_dim), places_of_run(run, want, head_dim)) for run in runs]
    if all(before == after for before, after in grids):
        return weight
    rest = [length for at, length in enumerate(weight.shape) if at != dim]
    parts = weight.movedim(dim, 0).split([prod(before) for before, _ in grids])
    longer = weight.new_zeros(sum(prod(after) for _, after in grids), *rest)
    start = 0
    for part, (before, after) in zip(parts, grids, strict=True):
        room = longer[start : start + prod(after)].view(*after, *rest)
        room[tuple(slice(length) for length in before)] = part.reshape(*before, *rest)
        start += prod(after)
    return longer.movedim(0, dim).contiguous()


def places_of_run(run: str, shape: BlockShape, head_dim: int) -> tuple[int, ...]:
    """Return the axes that a run folds into one. (groups, heads of a group, head_dim) for queries"""
    if run == "n":
        return (shape.width,)
    groups = shape.groups or 0
    if run == "q":
        return (groups, shape.heads_per_group, head_dim)
    return (groups, len(run) * head_dim)  # keys, values, or a head's queries, keys and values together


def padded_weights(
    model: PreTrainedModel,
    have: Sequence[BlockShape],
    want: Sequence[BlockShape],
    head_dim: int,
    wanted: Mapping[str, Tensor],
) -> Iterator[StreamedWeight]:
    """Yield everything in `wanted` as a padded weight [its axes] of the model. Each is made when it is used.

    A weight that the model lacks, such as the queries of a removed attention, is of zeros.
    wanted: name -> a weight of the wanted shape, which may be on the meta device.
    """
    axes, given = padded_axes(model), dict(model.state_dict())
    like = weight_of(model.get_input_embeddings())
    for name, shaped in wanted.items():
        weight, at = given.get(name), axes.get(name)
        if weight is None or not weight.numel():  # what is left of a removed layer is empty
            make = partial(like.new_zeros, shaped.shape, dtype=like.dtype)
        elif at is None:
            make = partial(as_it_is, weight)
        else:
            make = partial(pad_axis, weight, at.dim, at.runs, have[at.block], want[at.block], head_dim)
        dtype = like.dtype if weight is None else weight.dtype
        yield StreamedWeight(name, tuple(shaped.shape), dtype, make)


def as_it_is(weight: Tensor) -> Tensor:
    """Return a weight [its axes] of the model itself."""
    return weight
