"""Lessons: the target and the error of a sub-layer in a pruned block that learns from the dense block."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cfsp.model.block_states import states_in, states_out
from cfsp.model.families import Place
from cfsp.passes.hidden_states import States
from cfsp.passes.taps import forced, tapped
from cfsp.passes.walk import Walk

ORDER = ("attention", "mlp")
"""Kinds of sub-layers, in the order of training."""


@dataclass(frozen=True)
class Goals:
    """Outputs of a dense block, as targets for the next block of the walk `pruned`.

    counted: which tokens are not padding [rows, tokens]. left: the dense block's outputs. outputs: kind of
    sub-layer -> its outputs. added: the mean square of the block's change of the residual stream. apart:
    compare the outputs of the sub-layers, not those of the block. norms: kind of sub-layer -> paths of the
    norms that learn with it.
    """

    pruned: Walk
    counted: Tensor
    places: Mapping[str, Place]
    left: States
    outputs: Mapping[str, States]
    added: float
    apart: bool
    norms: Mapping[str, Sequence[str]]

    @classmethod
    def of(
        cls,
        dense: Walk,
        pruned: Walk,
        counted: Tensor,
        places: Mapping[str, Place],
        kinds: Sequence[str],
        apart: bool,
        norms: bool = False,
    ) -> Goals:
        """Advance the dense model's walk by one block. Return the targets for these kinds of sub-layers.

        norms: the norms of a sub-layer learn too.
        """
        after = ORDER[ORDER.index(kinds[0]) + 1 :] if kinds else ()  # forced while the first one learns
        heard = kinds if apart else [kind for kind in after if kind in places]
        paths = {kind: places[kind].consumer for kind in heard}
        with adding(dense, counted) as added:
            given = dense.advance([*paths.values()])
        outputs = {kind: given[path] for kind, path in paths.items()}
        learning = norms_beside(pruned, places) if norms and kinds else {}
        return cls(pruned, counted, places, dense.states, outputs, added.mean, apart, learning)


def norms_beside(walk: Walk, places: Mapping[str, Place]) -> dict[str, list[str]]:
    """Return kind of sub-layer -> paths of its norms in the walk's next block, from one pass through it.

    A norm of what a layer gives belongs to that layer's sub-layer, any other to the one that reads it. A norm
    that two sub-layers read, as in parallel blocks, belongs to none: each would change the other's input.
    """
    kinds = {path: kind for kind, place in places.items() for path in (*place.producers, place.consumer)}
    calls = calls_in(walk)
    layers = [call for call in calls if call[1] > 1]
    found: dict[str, list[str]] = {}
    for path, axes, given, left in calls:
        if axes > 1:
            continue
        gives = {kinds.get(layer) for layer, *_, output in layers if output.data_ptr() == given.data_ptr()}
        reads = {kinds.get(layer) for layer, _, entered, _ in layers if entered.data_ptr() == left.data_ptr()}
        owners = gives or reads
        if len(owners) == 1 and (kind := owners.pop()) is not None:
            found.setdefault(kind, []).append(path)
    return found


def calls_in(walk: Walk) -> list[tuple[str, int, Tensor, Tensor]]:
    """Return path, axes of the weight, input and output of each module with a weight that the block calls.

    Inputs and outputs: [..., channels]. It holds them, so that no two have the same address.
    """
    calls: list[tuple[str, int, Tensor, Tensor]] = []

    def hear(path: str, axes: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        calls.append((path, axes, args[0], output))

    with ExitStack() as stack:
        for path, module in walk.block.named_modules():
            if isinstance(weight := getattr(module, "weight", None), Tensor):
                handle = module.register_forward_hook(partial(hear, path, weight.dim()))
                stack.callback(handle.remove)
        walk.run(0)
    return calls


@dataclass
class Mean:
    """A running mean of values that arrive in parts."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        self.total += values.double().sum().item()
        self.count += values.numel()

    @property
    def mean(self) -> float:
        return self.total / self.count


@contextmanager
def adding(walk: Walk, counted: Tensor) -> Iterator[Mean]:
    """Yield the mean square of the change that the walk's next block makes, over tokens that count.

    The batches must pass in order.
    """
    squares, batches = Mean(), iter(walk.rows)

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        added = states_out(output).float() - states_in(args, kwargs).float()
        squares.add(added.square().cpu()[counted[list(next(batches))]])

    handle = walk.block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield squares
    finally:
        handle.remove()


class Lesson:
    """One sub-layer to train, in a float32 copy of its block. Nothing else in the copy is trained."""

    def __init__(self, goals: Goals, kind: str) -> None:
        self.goals, self.kind, self.pruned, self.counted = goals, kind, goals.pruned, goals.counted
        self.index, self.original = self.pruned.at, self.pruned.block
        self.name = f"block {self.index}, {kind}"
        place = goals.places[kind]
        self.block = copy.deepcopy(self.original).float().requires_grad_(False)
        self.weights = {
            name: weight.requires_grad_()
            for name, weight in self.block.named_parameters()
            if name.rpartition(".")[0] in (*place.producers, place.consumer, *goals.norms.get(kind, ()))
        }
        later = () if goals.apart else ORDER[ORDER.index(kind) + 1 :]
        self.given = {goals.places[one].consumer: goals.outputs[one] for one in later if one in goals.outputs}
        self.read = place.consumer if goals.apart else None
        self.goal = goals.outputs[kind] if goals.apart else goals.left
        self.unit = goals.added if not goals.apart else self.mean_square()

    def mean_square(self) -> float:
        """Return the mean square of the target over the tokens that count."""
        squares = Mean()
        for rows in self.pruned.rows:
            squares.add(self.goal[rows][self.counted[list(rows)]].double().square())
        return squares.mean

    def error(self, rows: Sequence[int]) -> Tensor:
        """Return the mean squared error on these rows, in units of the dense model's mean square. []"""
        device = self.pruned.model.device
        given = {path: output[rows].to(device) for path, output in self.given.items()}
        with forced(self.block, given), tapped(self.block, [self.read] if self.read else []) as heard:
            found = self.pruned.call(self.block, rows)
        found = heard[self.read].view_as(found) if self.read else found
        counted = self.counted[rows].to(device)
        gap = found[counted] - self.goal[rows].to(device)[counted].float()
        return gap.square().mean() / max(self.unit, 1e-12)

    @torch.no_grad()
    def judge(self, first: int) -> float:
        """Return the mean error over the tokens of all rows from index `first` on."""
        batches = [range(max(rows.start, first), rows.stop) for rows in self.pruned.rows]
        batches = [list(rows) for rows in batches if rows]
        counts = [self.counted[rows].sum().item() for rows in batches]
        errors = [self.error(rows).item() * count for rows, count in zip(batches, counts, strict=True)]
        return sum(errors) / sum(counts)

    def learned(self) -> dict[str, Tensor]:
        """Return name -> a copy of the weight [its axes], rounded to its dtype in the model."""
        dtypes = {name: weight.dtype for name, weight in self.original.named_parameters()}
        return {name: weight.detach().to(dtypes[name], copy=True) for name, weight in self.weights.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor], first: int) -> float:
        """Copy these weights into the model and the float32 block. -> the error by `judge`"""
        for name, value in values.items():
            self.weights[name].copy_(value)
            self.original.get_parameter(name).copy_(value)
        return self.judge(first)
