"""The tensors of a GGUF file, from the weights of a model whose blocks are like Llama's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.exports.padding import LLAMA_RUNS, pad_axis
from cfsp.model.shapes import BlockShape, Shapes
from cfsp.model.weights import is_tied

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Layer that is several in one (Phi-3) -> the layers."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Module of a block -> its name in a GGUF file."""


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file. make: computes it when it is written, so that one is in memory at a time."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class LlamaLike:
    """A model of Llama's blocks, with the sizes that its blocks have and those that the file gives them.

    interleaved: the architecture rotates neighbouring channels of a head, not its halves. fused: it has
    queries, keys and values in one tensor. shifted: its norms multiply by the weight, the model's by 1 more.
    """

    model: PreTrainedModel
    shapes: Shapes
    want: Sequence[BlockShape]
    interleaved: bool
    fused: bool = False
    shifted: bool = False

    def tensors(self) -> Iterator[GGUFTensor]:
        """Yield all tensors [their axes] of the file, in order."""
        weights = separate(dict(self.model.state_dict()), self.shapes)
        scale = multipliers(self.model)
        yield self.whole("token_embd.weight", weights["model.embed_tokens.weight"], scale.get("embed", 1.0))
        yield self.norm("output_norm.weight", weights["model.norm.weight"], scale.get("norm", 1.0))
        if not is_tied(self.model):
            yield self.whole("output.weight", weights["lm_head.weight"], 1.0)
        for index in range(len(self.want)):
            yield from self.block(index, weights, scale)

    def whole(self, name: str, weight: Tensor, scale: float) -> GGUFTensor:
        """Return a weight [its axes] that is written as it is, times a number."""
        return GGUFTensor(name, tuple(weight.shape), lambda: weight if scale == 1 else weight.float() * scale)

    def norm(self, name: str, weight: Tensor, scale: float = 1.0) -> GGUFTensor:
        """Return the weight [hidden or head_dim] of a norm."""
        more = 1.0 if self.shifted else 0.0
        return GGUFTensor(name, tuple(weight.shape), lambda: (weight.float() + more) * scale)

    def block(
        self, index: int, weights: Mapping[str, Tensor], scale: Mapping[str, float]
    ) -> Iterator[GGUFTensor]:
        """Yield the tensors [their axes] of one block."""
        path, want = f"model.layers.{index}", self.want[index]
        layers = [name for name in LLAMA_RUNS if name.startswith("mlp.") or want.heads]
        made = {
            (layer, kind): partial(self.layer, index, layer, kind, weights, scale.get(layer, 1.0))
            for layer in layers
            for kind in ("weight", "bias")
            if kind == "weight" or f"{path}.{layer}.bias" in weights
        }
        if self.fused and want.heads:
            parts = [made.pop((f"self_attn.{one}_proj", "weight")) for one in "qkv"]
            rows = (want.heads + 2 * (want.groups or 0)) * self.shapes.head_dim
            shape = (rows, self.shapes.hidden)
            qkv = partial(joined, parts)
            yield GGUFTensor(f"blk.{index}.attn_qkv.weight", shape, qkv)
        moved = self.moved_bias(index, weights)
        if moved is not None:
            made["mlp.down_proj", "bias"] = partial(torch.mul, moved, scale.get("mlp.down_proj", 1.0))
        for (layer, kind), make in made.items():
            yield GGUFTensor(f"blk.{index}.{NAMES[layer]}.{kind}", self.shape_of(layer, kind, want), make)
        for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            weight = weights.get(f"{path}.{norm}.weight")
            if (
                weight is None
                and want.heads
                and f"model.layers.{other_block(weights)}.{norm}.weight" in weights
            ):
                weight = torch.ones(self.shapes.head_dim)  # of a head of zeros
            if weight is not None and (want.heads or norm == "post_attention_layernorm"):
                yield self.norm(f"blk.{index}.{NAMES[norm]}.weight", weight)

    def moved_bias(self, index: int, weights: Mapping[str, Tensor]) -> Tensor | None:
        """Return the bias of this block's MLP with that of the next block's attention. -> [hidden]

        An attention without heads adds only its bias to the residual stream. llama.cpp leaves such an
        attention out, and nothing reads the stream between the two. None if there is nothing to move.
        """
        after = index + 1
        if after >= len(self.want) or self.want[after].heads:
            return None
        bias = weights.get(f"model.layers.{after}.self_attn.o_proj.bias")
        own = weights.get(f"model.layers.{index}.mlp.down_proj.bias")
        if bias is None:
            return None
        return bias.float() if own is None else own.float() + bias.float()

    def shape_of(self, layer: str, kind: str, want: BlockShape) -> tuple[int, ...]:
        """Return the shape of a layer's weight or bias in the file."""
        dim, (run,) = LLAMA_RUNS[layer]
        head_dim = self.shapes.head_dim
        units = {"n": want.width, "q": (want.heads or 0) * head_dim}.get(run, (want.groups or 0) * head_dim)
        if kind == "bias":
            return (self.shapes.hidden if dim else units,)
        return (self.shapes.hidden, units) if dim else (units, self.shapes.hidden)

    def layer(self, index: int, layer: str, kind: str, weights: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return a padded, scaled and reordered weight or bias. -> [its axes]"""
        have, want = self.shapes.blocks[index], self.want[index]
        weight = weights.get(f"model.layers.{index}.{layer}.{kind}")
        dim, runs = LLAMA_RUNS[layer]
        if weight is None or not weight.numel():
            return torch.zeros(self.shape_of(layer, kind, want))
        if kind == "weight" or dim == 0:
            weight = pad_axis(weight, dim, runs, have, want, self.shapes.head_dim)
        if self.interleaved and runs[0] in ("q", "k") and dim == 0:
            weight = interleaved(weight, self.shapes.head_dim)
        return weight if scale == 1 else weight.float() * scale


def joined(parts: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Return the parts below each other. -> [rows, inputs]"""
    return torch.cat([one() for one in parts])


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Put the channels of a head's two halves in turns, as llama.cpp rotates them. -> [rows, ...]"""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def separate(weights: dict[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Split layers that are several in one. [outputs, inputs] each. No weight is copied."""
    for name in [*weights]:
        layer = next((one for one in FUSED if f".{one}." in name), None)
        if layer is None:
            continue
        one = shapes.blocks[int(name.split(".")[2])]
        heads, groups = one.heads or 0, one.groups or 0
        rows = (
            [one.width] * 2 if "mlp" in layer else [heads * shapes.head_dim, *[groups * shapes.head_dim] * 2]
        )
        parts = weights.pop(name).split(rows)
        weights |= {name.replace(layer, part): run for part, run in zip(FUSED[layer], parts, strict=True)}
    return weights


def other_block(weights: Mapping[str, Tensor]) -> str:
    """Return the index of a block that has an attention, as text; "" if none has."""
    return next((name.split(".")[2] for name in weights if name.endswith("k_proj.weight")), "")


def multipliers(model: PreTrainedModel) -> dict[str, float]:
    """Return what Granite multiplies with, by the weight that takes it in; nothing for other families.

    Its scores have a multiplier in place of 1 / sqrt(head_dim). A tied head reads the scaled embeddings.
    """
    config = model.config
    if config.model_type != "granite":
        return {}
    embed, residual = config.embedding_multiplier, config.residual_multiplier
    head_dim = Shapes.of(model).head_dim
    return {
        "embed": embed,
        "norm": 1 / config.logits_scaling / (embed if is_tied(model) else 1),
        "self_attn.q_proj": config.attention_multiplier * head_dim**0.5,
        "self_attn.o_proj": residual,
        "mlp.down_proj": residual,
    }
