"""Unsupported: why a model without a layout cannot be pruned, by its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Endings of config keys that hold the number of experts."""

OTHER_BLOCKS = (
    "mamba",
    "ssm",
    "time_step",
    "conv_L_cache",
    "linear_conv",
    "lru_width",
    "rescale_every",
    "chunkwise_kernel",
)
"""Parts of config keys of blocks that mix tokens without attention."""

MODALITIES = ("text", "vision", "audio", "vq")
"""Beginnings of the names of sub-configs in a config of several modalities."""


def why_unsupported(config: PreTrainedConfig) -> str | None:
    """Return why a model of this config cannot be pruned; None if only a layout may be missing."""
    named = dict(numbers(config.to_dict()))
    # By attributes: a list of names of models would never be complete.
    if config.is_encoder_decoder or {"encoder_layers", "decoder_layers"} <= named.keys():
        return "it is an encoder-decoder; expected a model with one stack of blocks"
    if parts := [name for name in config.sub_configs if name.split("_")[0] in MODALITIES]:
        return f"it is a model of several modalities ({', '.join(parts)}); expected its language model alone"
    if getattr(config, "vocab_size", None) is None:
        return "it has no vocabulary, so it is no language model"
    if key := next((key for key in named for part in OTHER_BLOCKS if part in key), None):
        return (
            f"it has state-space, recurrent or convolutional blocks (its config has {key}); expected blocks "
            "of attention and an MLP"
        )
    if not getattr(config, "is_moe", True):  # some configs name experts that they do not use
        return None
    for key, value in named.items():
        if key.endswith(EXPERTS) and isinstance(value, int) and value > 1:
            return f"it is a mixture of experts ({key} {value}); expected a dense model"
    return None


def numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a config and of its sub-configs, except lists."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from numbers(value)
        elif not isinstance(value, list | tuple):
            yield str(key), value
