"""Weights in pieces on several devices (FSDP), and the whole model out of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

CHECKPOINTED = "_checkpoint_wrapped_module."
"""What accelerate's activation checkpointing puts into the paths of weights."""


def outline(module: nn.Module) -> nn.Module:
    """A copy without the values of its weights, which are on the meta device; buffers keep theirs."""
    return with_weights(module, lambda path, weight: torch.empty_like(weight, device="meta"))


def gathered(pieces: nn.Module, outline: nn.Module) -> nn.Module:
    """The whole model on every process, in the dtypes of its outline; one weight is put together at a time.

    pieces: what FSDP made of it; outline: `outline` of it before. All processes must call this at once.
    """
    found = {path.replace(CHECKPOINTED, ""): weight for path, weight in pieces.named_parameters()}

    def whole(path: str, weight: nn.Parameter) -> Tensor:
        piece = found[path].detach()
        return (piece.full_tensor() if isinstance(piece, DTensor) else piece).to(weight.dtype)

    return with_weights(outline, whole)


def with_weights(module: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """A copy with other weights. value: is given a weight's path and the weight; ties stay tied."""
    weights = {
        id(weight): nn.Parameter(value(path, weight), requires_grad=weight.requires_grad)
        for path, weight in module.named_parameters()
    }
    return copy.deepcopy(module, weights)
