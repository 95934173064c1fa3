"""Gather a model whose weights are sharded over several devices (FSDP).

The weights are gathered one by one into an outline of the model that was taken before. The wrapped model
is never unwrapped, so it does not matter what wrapped it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

CHECKPOINTED = "_checkpoint_wrapped_module."
"""What accelerate's activation checkpointing puts into the paths of weights."""


def outline(module: nn.Module) -> nn.Module:
    """Return a copy with its weights on the meta device, without values; buffers keep theirs."""
    return with_weights(module, lambda path, weight: torch.empty_like(weight, device="meta"))


def gathered(pieces: nn.Module, outline: nn.Module) -> nn.Module:
    """Return the whole model on every process, in the dtypes of its outline.

    pieces: the sharded model; outline: `outline` of the model before. All processes must call this together.
    """
    found = {path.replace(CHECKPOINTED, ""): weight for path, weight in pieces.named_parameters()}

    def whole(path: str, weight: nn.Parameter) -> Tensor:
        piece = found[path].detach()
        return (piece.full_tensor() if isinstance(piece, DTensor) else piece).to(weight.dtype)

    return with_weights(outline, whole)


def with_weights(module: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """Return a copy with other weights. value: called with a weight's path and weight; ties stay tied."""
    weights = {
        id(weight): nn.Parameter(value(path, weight), requires_grad=weight.requires_grad)
        for path, weight in module.named_parameters()
    }
    return copy.deepcopy(module, weights)
