"""Forward: run one batch through a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.model_inputs import COUNTED, inputs_of


def check_batch(batch: object, number: int) -> None:
    """Raise ValueError unless the batch maps input_ids to [batch, tokens] and at least one token counts."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"calibration batch {number} is {type(batch).__name__}; expected a dict with input_ids, a tensor "
            "of [batch, tokens], in an iterable of such"
        )
    masks = {name: batch[name] for name in ("attention_mask", COUNTED) if batch.get(name) is not None}
    for name, mask in masks.items():
        if mask.shape != ids.shape:
            raise ValueError(
                f"calibration batch {number}: {name} is {[*mask.shape]} and input_ids is {[*ids.shape]}; "
                "expected one shape"
            )
    if not counted_tokens(batch).any():
        raise ValueError(f"calibration batch {number} masks every token; expected at least one to count")


def counted_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Return which tokens statistics count: those that the attention mask shows, and `counted` does not
    leave out. The others of these are read, so that later tokens see them, but not measured.

    [batch, tokens], bool
    """
    ids = batch["input_ids"]
    masks = (mask for name in ("attention_mask", COUNTED) if (mask := batch.get(name)) is not None)
    found = torch.ones_like(ids, dtype=torch.bool)
    for mask in masks:
        found = found & mask.to(ids.device).bool()
    return found


def shown_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return which tokens count, as one row. [batch * tokens], bool; None: all of them"""
    found = counted_tokens(batch)
    return None if found.all() else found.flatten()


def shown_targets(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return which tokens of a decoder's input predict a label. [batch * tokens], bool; None: all of them"""
    labels = batch.get("labels")
    return None if labels is None or (labels != -100).all() else (labels != -100).flatten()


def feed(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    """Run one forward pass without the head and the labels. The hook `stop` may end it early."""
    inputs = {name: tensor.to(model.device) for name, tensor in inputs_of(model, batch).items()}
    with suppress(Stop):
        model.base_model(**inputs, use_cache=False)


class Stop(Exception):
    """Ends a forward pass early."""


def stop(*_: Any) -> None:
    """Raise Stop. A hook for the last module that a pass needs."""
    raise Stop
