"""Inputs: the arguments that a model takes for a batch of examples."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

SHIFT = "prepare_decoder_input_ids_from_labels"
"""The method by which a model makes its decoder's input of the labels."""

COUNTED = "counted"
"""The key of a batch that says which of the shown tokens statistics count. No model takes it."""


def arguments_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch without the mask that only statistics read. name -> [batch, tokens]"""
    return {name: tensor for name, tensor in batch.items() if name != COUNTED}


def inputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch without its labels. An encoder-decoder gets its decoder's input, made of the labels.

    The model shifts the labels itself, so that each token is predicted from the earlier ones.
    -> name -> [batch, tokens]

    Raises:
        ValueError: an encoder-decoder, and neither labels nor decoder_input_ids.
    """
    inputs = {name: tensor for name, tensor in arguments_of(batch).items() if name != "labels"}
    whole = getattr(model, "module", model)  # of data parallel training
    if not hasattr(whole, SHIFT) or "decoder_input_ids" in batch:
        return inputs
    if "labels" not in batch:
        raise ValueError(
            "an encoder-decoder reads a source and a target; expected labels in every batch, as "
            "calibration=task gives them"
        )
    return inputs | {"decoder_input_ids": getattr(whole, SHIFT)(batch["labels"])}


def inputs_of_tokens(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """Return the arguments for tokens alone. An encoder-decoder reads them in both stacks.

    ids: [batch, tokens]. -> name -> [batch, tokens]
    """
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if hasattr(model, SHIFT) else {})
