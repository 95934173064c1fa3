"""Forward: run one batch through a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.model_inputs import inputs_of


def check_batch(batch: object, number: int) -> None:
    """Raise ValueError unless the batch maps input_ids to [batch, tokens] and shows at least one token."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"calibration batch {number} is {type(batch).__name__}; expected a dict with input_ids, a tensor "
            "of [batch, tokens], in an iterable of such"
        )
    mask = batch.get("attention_mask")
    if mask is not None and not mask.any():
        raise ValueError(f"calibration batch {number} masks every token; expected at least one to count")


def shown_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return which tokens the attention mask shows. [batch * tokens], bool; None: all of them"""
    mask = batch.get("attention_mask")
    return None if mask is None or mask.all() else mask.flatten().bool()


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
