"""Loaded weights: whether they are whole and finite, and fit the config and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.model.weights import weight_of


def check_keys(path: str | Path, loaded: Mapping[str, Any], head: str) -> None:
    """Raise ValueError if a weight has another shape, is missing, or belongs to no module.

    Weights may be missing for a new task head. Only checkpoints of a model that writes text must have no
    others.
    """
    for name, found, wanted in sorted(loaded["mismatched_keys"]):
        raise ValueError(
            f"model path {str(path)!r}: {name} is {list(found)} in the checkpoint and {list(wanted)} by "
            "config.json, or the task's labels; expected the config, or the labels, of these weights"
        )
    missing, unexpected = sorted(loaded["missing_keys"]), sorted(loaded["unexpected_keys"])
    if missing and head in ("causal_lm", "masked_lm", "sequence_to_sequence"):
        raise ValueError(
            f"model path {str(path)!r}: {len(missing)} weights are missing and would be random, such as "
            f"{missing[0]}; expected a whole checkpoint of a {head}"
        )
    if unexpected and head in ("causal_lm", "sequence_to_sequence"):
        raise ValueError(
            f"model path {str(path)!r}: {len(unexpected)} weights belong to no module, such as "
            f"{unexpected[0]}; expected a checkpoint of the model that config.json describes"
        )


def check_weights(path: str | Path, model: PreTrainedModel) -> None:
    """Raise ValueError that names a weight with NaN or infinite elements, if there is one."""
    bad = [name for name, weight in model.named_parameters() if not is_finite(weight)]
    if bad:
        raise ValueError(
            f"model path {str(path)!r}: {len(bad)} weights are NaN or infinite, such as {bad[0]}; expected "
            "finite ones"
        )


@torch.no_grad()
def is_finite(weight: Tensor) -> bool:
    """Return whether all elements are finite. One pass without a copy: NaN makes the extremes NaN."""
    return weight.numel() == 0 or all(end.isfinite() for end in weight.aminmax())


def check_vocabulary(path: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer has a token without an embedding in the model.

    The pad token may lack one, as in some published models: its positions are not read.
    """
    rows = weight_of(model.get_input_embeddings()).shape[0]
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    beyond.pop(str(tokenizer.pad_token), None)
    if beyond:
        token = min(beyond, key=beyond.__getitem__)
        raise ValueError(
            f"model path {str(path)!r}: the tokenizer has {len(beyond)} tokens beyond the model's {rows}, "
            f"such as {token!r} (number {beyond[token]}); expected the model's own tokenizer"
        )
