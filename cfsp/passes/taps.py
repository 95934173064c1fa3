"""Taps: record or replace the outputs of modules in a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


@contextmanager
def tapped(block: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the last outputs of these modules of a block: path ("" is the block itself) -> output."""
    heard: dict[str, Any] = {}

    def hear(path: str, module: nn.Module, args: tuple, output: Any) -> None:
        heard[path] = output

    handles = [block.get_submodule(path).register_forward_hook(partial(hear, path)) for path in paths]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forced(block: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the outputs of these modules of a block. values: path -> [batch, tokens, outputs]"""

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
