"""Weights: what a module computes with, as tensors. PyTorch declares every attribute as tensor or module."""

from __future__ import annotations

from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a layer, in the layer's own shape [its axes]. Raises TypeError if it has none."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__}.weight is a {type(weight).__name__}; expected a tensor")
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a layer [outputs], None if it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None
