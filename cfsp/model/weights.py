"""Weights and biases of a module, typed as tensors. PyTorch types every attribute as tensor or module."""

from __future__ import annotations

from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a layer, in the layer's own shape [its axes]. Raises TypeError if it has none."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__}.weight is a {type(weight).__name__}; expected a tensor")
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer [outputs], None if it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None
