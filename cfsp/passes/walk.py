"""Walk: run all batches through the blocks of a model, one block after the other.

The model's own forward computes the arguments of a block. It skips the blocks that are done: the last of
them returns the stored hidden states, and the next block runs. So each block costs only its own time, no
code of a family is repeated, and only hidden states are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.block_states import arguments_beside, states_in, states_out
from cfsp.model.blocks import block_modules, check_one_stack
from cfsp.passes.forward import check_batch, feed, stop
from cfsp.passes.hidden_states import States, Store, storing
from cfsp.passes.modes import evaluating
from cfsp.passes.taps import tapped


class Walk:
    """The position of all batches in a model. `walking` makes one.

    at: index of the next block.
    states: the input of the next block. That of the first block is stored only when `take` reads it.
    rows: the row indices of each batch; they run on from batch to batch.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], store: Store) -> None:
        for number, batch in enumerate(batches):
            check_batch(batch, number)
        self.model, self.batches, self.store = model, batches, store
        self.blocks = block_modules(model)
        self.at = 0
        ends = [*accumulate((len(batch["input_ids"]) for batch in batches), initial=0)]
        self.rows = [range(*ends[number : number + 2]) for number in range(len(batches))]
        self.states = self._room("hidden")
        self._tuples: list[bool] = []
        self._arguments: dict[torch.Size, tuple[tuple, dict]] = {}

    @property
    def block(self) -> nn.Module:
        return self.model.get_submodule(self.blocks[self.at])

    @contextmanager
    def resumed(self, first: int = 0) -> Iterator[None]:
        """Make forward passes begin at block `at`. They must take the batches in order, from `first` on."""
        passed = [self.model.get_submodule(path) for path in self.blocks[: self.at]]
        theirs = [vars(block).get("forward") for block in passed]  # set by accelerate's hooks, for example
        rows = cycle(chain.from_iterable(self.rows[first:]))
        try:
            for number, block in enumerate(passed):
                last = number == self.at - 1
                block.forward = passing(self._tuples[number], self.states if last else None, rows)
            yield
        finally:
            for block, forward in zip(passed, theirs, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward

    @torch.no_grad()
    def run(self, number: int) -> None:
        """Run one batch through block `at`, for the hooks that are attached."""
        handle = self.block.register_forward_hook(stop)
        try:
            with self.resumed(number):
                feed(self.model, self.batches[number])
        finally:
            handle.remove()

    @torch.no_grad()
    def advance(self, taps: Sequence[str] = ()) -> dict[str, States]:
        """Run all batches through block `at`, as it is now, and move on to the next block.

        taps: paths of modules in the block. -> path -> the module's outputs, in the shape of hidden states
        """
        heard = {path: self._room(path) for path in taps}
        with tapped(self.block, ["", *taps]) as given:
            for number in range(len(self.batches)):
                self.run(number)
                left = states_out(given[""])
                for path, states in heard.items():
                    states.put(number, given[path].view_as(left))
                self.states.put(number, left)
        self._tuples.append(isinstance(given[""], tuple))
        self._arguments.clear()
        self.at += 1
        return heard

    def skip(self) -> None:
        """Move on to the next block without running block `at`, as if it were not there."""
        self._fill()
        with tapped(self.block, [""]) as given:
            self.run(0)
        self._tuples.append(isinstance(given[""], tuple))
        self._arguments.clear()
        self.at += 1

    def take(self, rows: Sequence[int]) -> Tensor:
        """Return the input of block `at` for these rows, on the model's device. [rows, tokens, hidden]"""
        self._fill()
        return self.states[rows].to(self.model.device)

    def call(self, block: nn.Module, rows: Sequence[int]) -> Tensor:
        """Return the output of a float32 copy of block `at` for these rows. [rows, tokens, hidden]

        Gradients flow. Batches must have no attention mask and rows of one length; padding is on the right,
        where no real token attends to it. So the block's other arguments depend only on the shape.
        """
        hidden = self.take(rows)
        shape = hidden.shape[:2]
        if shape not in self._arguments:
            ids = torch.zeros(shape, dtype=torch.long)
            self._arguments[shape] = float32(arguments_beside(*self._called({"input_ids": ids})))
        args, kwargs = self._arguments[shape]
        return states_out(block(hidden.float(), *args, **kwargs))

    @torch.no_grad()
    def _called(self, batch: Mapping[str, Tensor]) -> tuple[tuple, dict]:
        """Return the arguments with which the model calls block `at`."""
        calls: list[tuple[tuple, dict]] = []

        def hear(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append((args, kwargs))
            stop()

        handle = self.block.register_forward_pre_hook(hear, with_kwargs=True)
        try:
            with self.resumed():
                feed(self.model, batch)
        finally:
            handle.remove()
        return calls[0]

    def _fill(self) -> None:
        """Store the input of the first block, which no block before it has left."""
        if not self.states:
            for number, batch in enumerate(self.batches):
                self.states.put(number, states_in(*self._called(batch)))

    def _room(self, name: str) -> States:
        return States(self.store, name, [len(rows) for rows in self.rows])


@contextmanager
def walking(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    place: str = "memory",
    folder: Path | None = None,
) -> Iterator[Walk]:
    """Yield a walk through a model in eval mode. Restore the modes and delete the states afterwards.

    place: store the states in "memory", on the model's device, on the "host" or on "disk".
    folder: for the files of "disk", deleted afterwards; None: a temporary folder.

    Raises:
        ValueError: an unknown place; a batch that is malformed or masks every token; an encoder-decoder.
    """
    check_one_stack(model, "a walk from block to block")
    with storing(place, folder) as store, evaluating(model):
        walk = Walk(model, batches, store)
        try:
            yield walk
        finally:
            walk.states.clear()


def passing(as_tuple: bool, states: States | None, rows: Iterator[int]) -> Callable:
    """Return a forward for a block that is done. It returns the states of the next rows, or its input."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        output = hidden_states
        if states is not None:
            output = states[[*islice(rows, len(hidden_states))]].to(hidden_states.device)
        return (output,) if as_tuple else output

    return forward


def float32(value: Any) -> Any:
    """Return the same arguments with every floating-point tensor in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(float32(item) for item in value)
    if isinstance(value, dict):
        return {key: float32(item) for key, item in value.items()}
    return value
