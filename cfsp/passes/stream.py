"""Stream: the hidden states of all batches between two blocks, taken on block by block.

The model's own forward makes every block's arguments: the blocks that are done are passed over, the last
of them gives the states that are kept, and the next one runs. So a block costs its own time, whatever its
number, nothing of a family's code is written again, and only hidden states are held, in memory or on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.checks import check_choice
from cfsp.model.blocks import block_modules
from cfsp.passes.forward import check_batch, feed, stop
from cfsp.passes.modes import evaluating
from cfsp.storage.atomic import reserve

PLACES = ("memory", "disk")
"""Where hidden states can be kept."""


class Stream:
    """Where all batches stand, the model in eval mode. at: the index of the block that they reach next.

    place: keep the states in "memory", on the model's device, or on "disk", in a folder under $TMPDIR.
    """

    def __init__(
        self, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], place: str = "memory"
    ):
        check_choice("hidden_states", place, PLACES)
        for number, batch in enumerate(batches):
            check_batch(batch, number)
        self.model, self.batches = model, batches
        self.blocks = block_modules(model)
        self.at = 0
        self._states: list[Tensor] = []
        self._tuples: list[bool] = []
        self._mode = evaluating(model)
        self._folder = tempfile.TemporaryDirectory(prefix="cfsp-") if place == "disk" else None

    @property
    def block(self) -> nn.Module:
        return self.model.get_submodule(self.blocks[self.at])

    @contextmanager
    def resumed(self, first: int = 0) -> Iterator[None]:
        """Let forward passes, over the batches from `first` on and in order, begin at block `at`."""
        passed = [self.model.get_submodule(path) for path in self.blocks[: self.at]]
        theirs = [vars(block).get("forward") for block in passed]  # of accelerate's hooks, say
        rows = cycle(row for states in self._states[first:] for row in states)
        try:
            for number, block in enumerate(passed):
                last = number == self.at - 1
                block.forward = passing(self._tuples[number], rows if last else None)
            yield
        finally:
            for block, forward in zip(passed, theirs, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward

    @torch.no_grad()
    def run(self, number: int) -> None:
        """Take one batch through block `at`, for hooks to see."""
        handle = self.block.register_forward_hook(stop)
        try:
            with self.resumed(number):
                feed(self.model, self.batches[number])
        finally:
            handle.remove()

    def advance(self) -> None:
        """Take all batches through block `at`, as it is now."""
        output: Any = None
        outputs: list[Any] = []
        handle = self.block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        kept: list[Tensor] = []
        try:
            for number in range(len(self.batches)):
                self.run(number)
                output = outputs.pop()
                states = (output[0] if isinstance(output, tuple) else output).detach()
                kept.append(self.keep(states, f"{number}.{self.at % 2}"))  # two files take turns
        finally:
            handle.remove()
        self._tuples.append(isinstance(output, tuple))
        self._states = kept
        self.at += 1

    def keep(self, tensor: Tensor, name: str) -> Tensor:
        """The same, or on disk a copy that lies in a file and is read as it is used.

        tensor: of any axes [its axes], which the result has too.
        """
        if self._folder is None:
            return tensor
        path = Path(self._folder.name) / name
        reserve(path, tensor.nbytes)
        copy = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return copy.view(tensor.shape).copy_(tensor)

    def __enter__(self) -> Stream:
        self._mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._states = []
        self._mode.__exit__(kind, error, trace)
        if self._folder is not None:
            self._folder.cleanup()


def passing(as_tuple: bool, rows: Iterator[Tensor] | None) -> Callable:
    """What stands in for a block that is done: it gives the next samples of those kept, or its input."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        output = hidden_states
        if rows is not None:
            output = torch.stack([*islice(rows, len(hidden_states))]).to(hidden_states.device)
        return (output,) if as_tuple else output

    return forward
