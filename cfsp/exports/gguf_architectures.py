"""Architectures: what llama.cpp calls a model, and which models it cannot express."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.model.shapes import BlockShape, Shapes
from cfsp.model.weights import is_tied


@dataclass(frozen=True)
class Architectures:
    """What llama.cpp calls a family whose blocks are alike, and one that also takes uneven blocks.

    activation: of the MLP, which a file cannot say.
    """

    alike: str
    uneven: str | None
    activation: tuple[str, ...] = ("silu",)


ARCHITECTURES = {
    "llama": Architectures("llama", "deci"),
    "mistral": Architectures("llama", "deci"),
    "granite": Architectures("llama", "deci"),
    "phi3": Architectures("llama", "deci"),
    "qwen2": Architectures("qwen2", "deci"),
    "qwen3": Architectures("qwen3", "openelm"),
    "gemma": Architectures("gemma", None, ("gelu_pytorch_tanh", "gelu")),
}
INTERLEAVED = ("llama", "deci")
"""Architectures that rotate neighbouring channels of a head."""


def architecture(model: PreTrainedModel, want: Sequence[BlockShape]) -> str:
    """Return the architecture of the file. Raises ValueError if llama.cpp has none for this model."""
    config = model.config
    kind, family = config.model_type, ARCHITECTURES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"a {kind} has no writer of GGUF here; expected one of {', '.join(ARCHITECTURES)}, or "
            "cfsp-export padded and llama.cpp's convert_hf_to_gguf.py on what it writes"
        )
    check_blocks(model, family)
    biases, alike = biases_beyond(model), len({*want}) == 1 and bool(want[0].heads)
    if kind == "qwen2":
        alike = alike and (want[0].heads or 0) * Shapes.of(model).head_dim == Shapes.of(model).hidden
    if alike and not biases:
        return family.alike
    return uneven_architecture(model, biases)


def uneven_architecture(model: PreTrainedModel, biases: Sequence[str]) -> str:
    """Return the architecture for blocks that differ or have these biases.

    Raises ValueError if llama.cpp has none for this model.
    """
    kind, family = model.config.model_type, ARCHITECTURES[model.config.model_type]
    what = f"the bias {biases[0]}" if biases else "blocks of different sizes"
    tied_only = family.uneven == "openelm" and not is_tied(model)
    if family.uneven is None or tied_only or (biases and family.uneven != "deci"):
        remedy = (
            "compensation=none"
            if biases
            else "allocator=uniform, or cfsp-export padded, then gguf on what it writes"
        )
        untied = " and an output layer of its own" if tied_only and not biases else ""
        raise ValueError(f"llama.cpp has no {kind} with {what}{untied}; expected {remedy}")
    return family.uneven


def biases_beyond(model: PreTrainedModel) -> list[str]:
    """Return the biases of the layers that write to the residual stream, and of MLPs."""
    ends = ("o_proj.bias", "down_proj.bias", "gate_proj.bias", "up_proj.bias")
    own = [name for name, _ in model.named_parameters() if name.endswith(ends)]
    if model.config.model_type in ("qwen3", "gemma"):
        own += [name for name, _ in model.named_parameters() if name.endswith("_proj.bias")]
    return own


def check_blocks(model: PreTrainedModel, family: Architectures) -> None:
    """Raise ValueError if blocks compute what llama.cpp does not."""
    config = model.config
    if config.hidden_act not in family.activation:
        raise ValueError(
            f"this {config.model_type} has hidden_act={config.hidden_act}; llama.cpp computes "
            f"{family.activation[0]} in it; expected that, or cfsp-export padded for other engines"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(
            f"this {config.model_type} sees sliding_window={window} tokens, and llama.cpp would see all; "
            "expected a model without one, or cfsp-export padded for other engines"
        )
