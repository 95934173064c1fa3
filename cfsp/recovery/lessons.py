"""Lessons: what a sub-layer of a pruned block is to learn from the dense block, and how far off it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfsp.model.families import Place
from cfsp.passes.replay import RowStream, forced, tapped

ORDER = ("attention", "mlp")
"""Sub-layers in the order in which they learn."""


@dataclass(frozen=True)
class Goals:
    """What a dense block gave, beside the pruned block `index` of the stream `pruned` that is to learn it.

    left: what left it; outputs: kind of sub-layer -> what that gave. [rows, tokens, hidden]
    added: the mean square of what it added to the stream. apart: sub-layers are compared by what they
    give themselves, not by what then leaves the block.
    """

    pruned: RowStream
    index: int
    places: Mapping[str, Place]
    left: Tensor
    outputs: Mapping[str, Tensor]
    added: float
    apart: bool

    @classmethod
    def of(
        cls,
        dense: RowStream,
        number: int,
        pruned: RowStream,
        index: int,
        places: Mapping[str, Place],
        kinds: Sequence[str],
        apart: bool,
    ) -> Goals:
        """Take the dense stream through its block `number`, for these kinds of sub-layers to learn."""
        after = ORDER[ORDER.index(kinds[0]) + 1 :] if kinds else ()  # what is forced while the first learns
        heard = kinds if apart else [kind for kind in after if kind in places]
        paths = {kind: places[kind].consumer for kind in heard}
        outputs, added = dense.advance(number, list(paths.values()))
        outputs = {kind: outputs[path] for kind, path in paths.items()}
        return cls(pruned, index, places, dense.hidden, outputs, added, apart)


class Lesson:
    """One sub-layer, in a copy of its block in float32 of which nothing else learns."""

    def __init__(self, goals: Goals, kind: str) -> None:
        self.goals, self.kind, self.pruned = goals, kind, goals.pruned
        self.name = f"block {goals.index}, {kind}"
        place = goals.places[kind]
        self.original = self.pruned.replay.blocks[goals.index]
        self.block = copy.deepcopy(self.original).float().requires_grad_(False)
        self.weights = {
            name: weight.requires_grad_()
            for name, weight in self.block.named_parameters()
            if name.rpartition(".")[0] in (*place.producers, place.consumer)
        }
        later = () if goals.apart else ORDER[ORDER.index(kind) + 1 :]
        self.given = {goals.places[one].consumer: goals.outputs[one] for one in later if one in goals.outputs}
        self.read = place.consumer if goals.apart else None
        self.goal = goals.outputs[kind] if goals.apart else goals.left
        self.unit = goals.added if not goals.apart else self.mean_square()

    def mean_square(self) -> float:
        """Of the goal, over the tokens that count."""
        total = sum(
            self.goal[rows][self.pruned.counted[rows]].double().square().sum().item()
            for rows in self.pruned.slices
        )
        return total / (self.pruned.counted.sum().item() * self.goal.shape[-1])

    def error(self, rows: slice | list[int]) -> Tensor:
        """Mean squared error over the tokens of these rows, in units of what the dense model has. []"""
        device = self.pruned.device
        given = {path: output[rows].to(device) for path, output in self.given.items()}
        with forced(self.block, given), tapped(self.block, [self.read] if self.read else []) as heard:
            found = self.pruned.replay.run(self.goals.index, self.pruned.at(rows), self.block)
        found = heard[self.read].view_as(found) if self.read else found
        counted = self.pruned.counted[rows].to(device)
        gap = found[counted] - self.goal[rows].to(device)[counted].float()
        return gap.square().mean() / max(self.unit, 1e-12)

    @torch.no_grad()
    def judge(self, first: int) -> float:
        """The error over all tokens of the rows from the first one on."""
        batches = [range(max(rows.start, first), rows.stop) for rows in self.pruned.slices]
        batches = [list(rows) for rows in batches if rows]
        counts = [self.pruned.counted[rows].sum().item() for rows in batches]
        errors = [self.error(rows).item() * count for rows, count in zip(batches, counts, strict=True)]
        return sum(errors) / sum(counts)

    def learned(self) -> dict[str, Tensor]:
        """Name -> weight as it is [its axes], rounded to the dtype that it has in the model."""
        dtypes = {name: weight.dtype for name, weight in self.original.named_parameters()}
        return {name: weight.detach().to(dtypes[name], copy=True) for name, weight in self.weights.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor], first: int) -> float:
        """Give the model, and the copy, these weights. -> what `judge` then says"""
        for name, value in values.items():
            self.weights[name].copy_(value)
            self.original.get_parameter(name).copy_(value)
        return self.judge(first)
