"""Losses of calibration samples, one sample after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.blocks import is_causal
from cfsp.model.model_inputs import arguments_of
from cfsp.passes.forward import counted_tokens


def loss_of(model: PreTrainedModel, sample: Mapping[str, Tensor], number: int) -> Tensor:
    """Return the loss of a sample, the mean over its predicted tokens. []

    Raises ValueError if there is none, or if it is NaN or infinite.
    """
    loss = model(**sample, use_cache=False).loss if is_causal(model) else model(**sample).loss
    if loss is None:
        raise ValueError(
            f"a {type(model).__name__} computes no loss from these labels; expected another criterion"
        )
    if not loss.isfinite():
        raise ValueError(f"calibration sample {number} has a loss of {loss.item()}; check the weights")
    return loss


def predicted_tokens(model: PreTrainedModel, samples: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """Return how many tokens each sample predicts. Raises ValueError if there are none."""
    first = int(is_causal(model))  # nothing predicts a text's first token
    counts = [int((sample["labels"].flatten()[first:] != -100).sum()) for sample in samples]
    if not sum(counts):
        raise ValueError("calibration gave no token to predict; expected samples of two or more tokens")
    return counts


def split_samples(batch: Mapping[str, Tensor], model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Yield the samples of a batch, with labels for every token that counts (`counted_tokens`).

    batch: name -> [batch, tokens]. -> name -> [1, tokens], one sample after the other
    """
    if not is_causal(model) and "labels" not in batch:
        raise ValueError("this model does not predict the next token; expected labels in every batch")
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    # With padding on the left, nothing predicts the first shown token.
    shown = counted_tokens(batch) & torch.cat([mask[:, :1], mask[:, :-1]], dim=1)
    labels = batch.get("labels", batch["input_ids"].masked_fill(~shown, -100))
    inputs = arguments_of(batch)
    for row in range(len(batch["input_ids"])):
        sample = {name: tensor[row : row + 1].to(model.device) for name, tensor in inputs.items()}
        yield sample | {"labels": labels[row : row + 1].to(model.device)}
