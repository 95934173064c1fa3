"""The hidden states that a block is called with and those that it returns.

Most blocks take them as the first argument, some by name. Some return a tensor, some a tuple that begins
with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def states_in(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among a block's arguments. [batch, tokens, hidden]"""
    return args[0] if args else kwargs["hidden_states"]


def arguments_beside(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A block's other arguments, to be given after hidden states: masks, rotary angles, slopes."""
    return args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}


def states_out(output: Any) -> Tensor:
    """The hidden states in what a block returns. [batch, tokens, hidden]"""
    return output[0] if isinstance(output, tuple) else output


def with_states(output: Any, states: Tensor) -> Any:
    """What a block returns, with other hidden states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
