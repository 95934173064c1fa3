"""The hidden states in the arguments and the output of a block.

Most blocks take them as the first argument, some by name. Some blocks return a tensor, others a tuple
that begins with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def states_in(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states in a block's arguments. [batch, tokens, hidden]"""
    return args[0] if args else kwargs["hidden_states"]


def arguments_beside(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return a block's arguments after the hidden states: masks, rotary angles, slopes."""
    return args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}


def states_out(output: Any) -> Tensor:
    """Return the hidden states in a block's output. [batch, tokens, hidden]"""
    return output[0] if isinstance(output, tuple) else output


def with_states(output: Any, states: Tensor) -> Any:
    """Return a block's output with its hidden states replaced."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
