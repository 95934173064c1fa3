"""Weights and biases of a module, typed as tensors, and the linear layer inside adapters.

PyTorch types every attribute as tensor or module. peft wraps a layer: the layer itself is `base_layer`, the
adapters lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

INSIDE = "base_layer"
"""Name of the layer inside a wrapper of adapters."""


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


def path_inside(model: nn.Module, path: str) -> str:
    """Return the path of the layer inside all wrappers of a layer; the same path if there are none."""
    while isinstance(getattr(model.get_submodule(path), INSIDE, None), nn.Module):
        path = f"{path}.{INSIDE}"
    return path


def path_outside(path: str) -> str:
    """Return the path of the outermost wrapper of a layer, which its inputs and outputs pass."""
    while path.endswith(f".{INSIDE}"):
        path = path.removesuffix(f".{INSIDE}")
    return path


def why_no_linear(module: nn.Module) -> str | None:
    """Return why the weight of a layer inside cannot be cut; None if nothing speaks against it."""
    if parametrize.is_parametrized(module, "weight"):
        return "its weight is computed (parametrised); expected remove_parametrizations() first"
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        return "its weight is offloaded; expected a device that holds the whole model"
    return None


def added_weight(model: nn.Module, path: str) -> Tensor | None:
    """Return what adapters add to the weight at a path of `path_inside` [its axes]; None if nothing."""
    total: Tensor | None = None
    while path.endswith(f".{INSIDE}"):
        path = path.removesuffix(f".{INSIDE}")
        wrapper = model.get_submodule(path)
        names = [] if getattr(wrapper, "merged", False) else getattr(wrapper, "active_adapters", [])
        for name in names:
            if name in wrapper.lora_A:
                with torch.no_grad():
                    added = wrapper.get_delta_weight(name)  # pyright: ignore[reportCallIssue]
                total = added if total is None else total + added
    return total


def whole_weight(model: nn.Module, path: str) -> Tensor:
    """Return the weight that a layer computes with, what adapters add included. [its axes], detached"""
    own, added = weight_of(model.get_submodule(path)).detach(), added_weight(model, path)
    return own if added is None else (own + added).to(own.dtype)


def adapter_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and the module of everything that lies in wrappers beside the wrapped layers."""
    for path, wrapper in model.named_modules():
        if isinstance(getattr(wrapper, INSIDE, None), nn.Module):
            for name, module in wrapper.named_modules():
                if name and name.split(".")[0] != INSIDE:
                    yield f"{path}.{name}", module


def adapter_weights(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of adapters."""
    return {id(weight) for _, module in adapter_modules(model) for weight in module.parameters()}


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether the output layer has the weight of the embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
