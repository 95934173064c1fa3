"""Weights in pieces on several devices (FSDP), and the whole model out of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


def outline(module: nn.Module) -> nn.Module:
    """A copy without the values of its weights, which are on the meta device; buffers keep theirs."""
    return with_weights(module, lambda path, weight: torch.empty_like(weight, device="meta"))


def gathered(pieces: nn.Module, outline: nn.Module) -> nn.Module:
    """The whole model on every process, in the dtypes of its outline.

    pieces: what FSDP made of it; outline: `outline` of it before. All processes must call this at once.
    """
    whole = get_model_state_dict(pieces, options=StateDictOptions(full_state_dict=True))
    return with_weights(outline, lambda path, weight: whole[path].to(weight.dtype))


def with_weights(module: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """A copy with other weights. value: is given a weight's path and the weight; ties stay tied."""
    weights = {
        id(weight): nn.Parameter(value(path, weight), requires_grad=weight.requires_grad)
        for path, weight in module.named_parameters()
    }
    return copy.deepcopy(module, weights)
