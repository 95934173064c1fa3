"""Rotary: the angles of a model's positions, as keys and tensors of a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cfsp.exports.gguf_tensors import GGUFTensor

if TYPE_CHECKING:
    from gguf import GGUFWriter

KNOWN = ("default", "linear", "llama3")
"""Kinds of rotary angles that are written and were compared with the engine."""


def rotary(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the rotary parameters of a config."""
    return dict(getattr(config, "rope_parameters", None) or {})


def check_rotary(config: PreTrainedConfig) -> None:
    """Raise ValueError if the file could not express the angles."""
    given = rotary(config)
    kind = given.get("rope_type", "default")
    share = given.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    if kind not in KNOWN or share != 1.0:
        what = f"rope_type={kind}" if kind not in KNOWN else f"partial_rotary_factor={share}"
        raise ValueError(
            f"this {config.model_type} has {what}; expected one of {', '.join(KNOWN)} on whole heads, or "
            "cfsp-export padded and llama.cpp's convert_hf_to_gguf.py on what it writes"
        )


def add_rotary(writer: GGUFWriter, config: PreTrainedConfig, head_dim: int) -> None:
    """Write the keys of the angles."""
    from gguf import RopeScalingType

    given = rotary(config)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(
        float(given.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)
    )
    if given.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(given["factor"]))


def rotary_factors(config: PreTrainedConfig) -> list[GGUFTensor]:
    """Return the divisors of the angles that Llama 3 stretches, as a tensor of the file. -> [head_dim / 2]"""
    if rotary(config).get("rope_type") != "llama3":
        return []
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    halves = len(inverse)
    plain = rotary(config)["rope_theta"] ** -(torch.arange(halves, dtype=torch.float64) / halves)
    return [GGUFTensor("rope_freqs.weight", (halves,), (plain / inverse.double()).float)]
