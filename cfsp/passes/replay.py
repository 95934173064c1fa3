"""Replay: the blocks of a model, called one at a time as the model itself calls them.

Whatever a block wants besides hidden states (masks, rotary angles, slopes) is taken from a real pass of
the model, so nothing here knows a family or a release of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.blocks import block_modules
from cfsp.passes.forward import Stop, stop
from cfsp.storage.atomic import reserve


class Replay:
    """The blocks of one causal model on full rows of tokens.

    No attention mask is given: padding stands on the right, where no token that counts sees it. So the
    arguments of a block depend on the shape of a batch alone, and one pass for each shape finds them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = [model.get_submodule(path) for path in block_modules(model)]
        self._calls: dict[tuple[int, int], list[tuple[tuple, dict]]] = {}

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """What enters the first block. ids: [batch, tokens] -> [batch, tokens, hidden]"""
        entered: list[Tensor] = []

        def enter(module: nn.Module, args: tuple) -> None:
            entered.append(args[0])
            stop()

        handle = self.blocks[0].register_forward_pre_hook(enter)
        try:
            with suppress(Stop):
                self.model.base_model(ids.to(self.model.device), use_cache=False)
        finally:
            handle.remove()
        return entered[0]

    def run(self, index: int, hidden: Tensor, block: nn.Module | None = None) -> Tensor:
        """What leaves a block. block: called in its place, in float32.

        hidden: [batch, tokens, hidden], the result too.
        """
        args, kwargs = self._arguments(hidden.shape[:2])[index]
        if block is None:
            block = self.blocks[index]
        else:
            hidden, args, kwargs = float32((hidden, args, kwargs))
        left = block(hidden, *args, **kwargs)
        return left if isinstance(left, Tensor) else left[0]

    @torch.no_grad()
    def _arguments(self, shape: Sequence[int]) -> list[tuple[tuple, dict]]:
        """What every block gets after its hidden states when the model is given so many rows and tokens."""
        rows, tokens = shape
        if (rows, tokens) not in self._calls:
            calls: list[tuple[tuple, dict]] = []

            def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
                calls.append((args[1:], kwargs))

            handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in self.blocks]
            try:
                ids = torch.zeros(rows, tokens, dtype=torch.long, device=self.model.device)
                self.model.base_model(ids, use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            self._calls[rows, tokens] = calls
        return self._calls[rows, tokens]


def float32(value: Any) -> Any:
    """The same arguments, every floating tensor in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(float32(item) for item in value)
    if isinstance(value, dict):
        return {key: float32(item) for key, item in value.items()}
    return value


@contextmanager
def tapped(block: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Hear what these modules of a block give: path -> the last output. [batch, tokens, outputs]"""
    heard: dict[str, Tensor] = {}

    def hear(path: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        heard[path] = output

    handles = [block.get_submodule(path).register_forward_hook(partial(hear, path)) for path in paths]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forced(block: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let these modules of a block give these values instead. path -> [batch, tokens, outputs]"""

    def force(value: Tensor, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return value.to(output).view_as(output)  # OPT's MLP works on [batch * tokens, hidden]

    handles = [
        block.get_submodule(path).register_forward_hook(partial(force, value))
        for path, value in values.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class RowStream:
    """The hidden states of many rows of tokens, on their way through the blocks of one model.

    ids: [rows, tokens]; counted: the same shape, bool, which tokens are no padding. batch: rows in one
    pass. folder: for the files that hold the states; None holds them in memory. name: of those files.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, counted: Tensor, batch: int, folder: Path | None, name: str
    ) -> None:
        self.replay, self.counted = Replay(model), counted
        self.slices = [slice(at, min(at + batch, len(ids))) for at in range(0, len(ids), batch)]
        self.folder, self.name = folder, name
        entered = self.replay.embed(ids[:1])
        self.shape, self.dtype, self.device = (*ids.shape, entered.shape[-1]), entered.dtype, entered.device
        self.hidden = self._room("hidden")
        for rows in self.slices:
            self.hidden[rows] = self.replay.embed(ids[rows])

    def at(self, rows: slice | list[int]) -> Tensor:
        """The hidden states of some rows, on the model's device. [batch, tokens, hidden]"""
        return self.hidden[rows].to(self.device)

    @torch.no_grad()
    def advance(self, index: int, taps: Sequence[str] = ()) -> tuple[dict[str, Tensor], float]:
        """Go through a block; what the modules at `taps` gave, and the mean square of what was added.

        -> path in the block -> [rows, tokens, hidden]; one number, over the tokens that count
        """
        heard_at = {path: self._room(path) for path in taps}
        added = torch.zeros((), dtype=torch.float64)
        for rows in self.slices:
            entered = self.at(rows)
            with tapped(self.replay.blocks[index], taps) as heard:
                left = self.replay.run(index, entered)
            for path, output in heard.items():
                heard_at[path][rows] = output.view_as(left)
            added += (left.float() - entered.float()).square().cpu()[self.counted[rows]].double().sum()
            self.hidden[rows] = left  # last: what entered may be a view of it
        return heard_at, added.item() / (self.counted.sum().item() * self.shape[-1])

    def _room(self, what: str) -> Tensor:
        """[rows, tokens, hidden], in host memory or in a file that is mapped into it."""
        if self.folder is None:
            return torch.empty(self.shape, dtype=self.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.{what}.bin"
        path.unlink(missing_ok=True)  # what is left of a killed run may have another size
        size = torch.Size(self.shape).numel()
        reserve(path, size * self.dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=self.dtype).view(self.shape)
