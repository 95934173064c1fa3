"""Footprint: the bytes of a model's weights and of its key/value cache, and a copy without data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from cfsp.model.blocks import is_causal, stacks_of
from cfsp.model.pass_cost import counted_inputs, eagerly


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters. A tied weight counts once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@torch.no_grad()
def cache_bytes(model: PreTrainedModel, batch: int, context: int) -> int:
    """Return the bytes of keys and values while `batch` sequences have `context` tokens each.

    A layer with a sliding window holds at most the window, a layer that shares the keys and values of another
    one holds none. An encoder-decoder holds those of the encoder's tokens too. 0 for a model that generates
    nothing.
    """
    if not (is_causal(model) or len(stacks_of(model)) > 1):
        return 0
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with eagerly(model):
        (cache,) = cache_of(model(**counted_inputs(model, ids), use_cache=True)).values()
    total = 0
    for part in ("self_attention_cache", "cross_attention_cache") if len(stacks_of(model)) > 1 else ("",):
        for layer in (getattr(cache, part) if part else cache).layers:
            window = getattr(layer, "sliding_window", None) or context
            of_a_token = layer.keys.nbytes + layer.values.nbytes
            total += of_a_token * min(context, window)
    return batch * total


def cache_of(out: ModelOutput) -> dict[str, Any]:
    """Return the cache that a pass filled, under the name by which the next pass takes it.

    transformers called it `past_key_values` before 5.24.
    """
    name = "cache" if "cache" in out else "past_key_values"
    return {name: out[name]}


def without_data(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy whose tensors have shapes and types but no data, so that it takes no memory."""
    known: dict[int, Any] = {}
    for weight in model.parameters():
        known[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
    for tensor in model.buffers():
        known[id(tensor)] = torch.empty_like(tensor, device="meta")
    return copy.deepcopy(model, known)


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the same tensors, so that it takes memory only for those that surgery replaces."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
