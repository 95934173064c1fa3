"""DeciLM: a checkpoint with MLP widths and key/value groups per block, which vLLM runs natively."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.describe import base_config
from cfsp.exports import configuration_decilm
from cfsp.exports.base import FolderExporter, Saved, check_next_token
from cfsp.exports.padding import LLAMA_RUNS, padded_weights
from cfsp.exports.streamed import write_streamed
from cfsp.model.shapes import BlockShape, Shapes
from cfsp.model.weights import is_tied

FAMILIES = ("llama", "mistral")
EMPTY_WIDTH = 32
"""Neurons of zeros in an MLP that has lost all of its own."""


@dataclass(frozen=True)
class DeciLM(FolderExporter):
    """A checkpoint for engines that know nemotron-nas (vLLM: DeciLMForCausalLM).

    MLPs keep their widths. All blocks have the same number of query heads there, so blocks with fewer get
    heads of zeros, which change no output. Biases that pruning added are switched on for all blocks.

    Raises:
        ValueError: the model is no Llama, or one with a sliding window.
    """

    ending: ClassVar[str] = "-decilm"

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_next_token(model)
        kind, window = model.config.model_type, getattr(model.config, "sliding_window", None)
        if kind not in FAMILIES or model.config.hidden_act != "silu":
            raise ValueError(
                f"a {kind} with hidden_act={model.config.hidden_act} is no DeciLM; expected one of "
                f"{', '.join(FAMILIES)} with silu, or cfsp-export padded"
            )
        if window is not None and window < model.config.max_position_embeddings:
            raise ValueError(
                f"this {kind} sees sliding_window={window} tokens, and a DeciLM sees all; expected a model "
                "without one, or cfsp-export padded"
            )

    def example(self, head: str) -> str:
        server = "python -m vllm.entrypoints.openai.api_server"
        return f"```sh\n{server} --model FOLDER --trust-remote-code\n```"

    def write(self, saved: Saved, target: Path) -> None:
        model, shapes = saved.model, saved.shapes
        want = shapes_of_equal_heads(shapes.blocks, shapes.hidden)
        config = decilm_config(model, want)
        names = decilm_names(model, shapes, want, config)
        done = (
            f"By `cfsp-export decilm`: {heads_and_zeros(shapes.blocks, want)}. vLLM runs it as "
            "DeciLMForCausalLM, with `--trust-remote-code` for its config."
        )
        with self.filling(saved, target, done) as part:
            write_streamed(part, [*padded_weights(model, shapes.blocks, want, shapes.head_dim, names)])
            (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            shutil.copyfile(configuration_decilm.__file__, part / "configuration_decilm.py")


def shapes_of_equal_heads(blocks: Sequence[BlockShape], hidden: int) -> list[BlockShape]:
    """Return sizes with the same number of query heads, the fewest that hold the groups of every block.

    Llama's config wants a residual width that is a multiple of the heads.
    """
    heads = max(1, *(one.heads or 0 for one in blocks))
    while hidden % heads or any(groups_within(one, heads) is None for one in blocks):
        heads += 1
    return [BlockShape(one.width or EMPTY_WIDTH, heads, groups_within(one, heads)) for one in blocks]


def heads_and_zeros(have: Sequence[BlockShape], want: Sequence[BlockShape]) -> str:
    """Return what blocks have in the checkpoint, and whether units of zeros are among it."""
    zeros = "; units of zeros among them and in MLPs change no output" if [*have] != [*want] else ""
    return f"every block has {want[0].heads} query heads{zeros}"


def groups_within(block: BlockShape, heads: int) -> int | None:
    """Return the fewest key/value groups that divide the heads and hold a block's own; None if none do."""
    least = max(block.groups or 0, 1)
    fitting = (
        one for one in range(least, heads + 1) if heads % one == 0 and heads // one >= block.heads_per_group
    )
    return next(fitting, None)


def decilm_config(model: PreTrainedModel, want: Sequence[BlockShape]) -> dict[str, Any]:
    """Return the config.json of the checkpoint.

    vLLM skips a bias without a switch in silence. Its attention_bias is that of the output layer where
    qkv_bias says otherwise; its mlp_bias is that of all three layers.
    """
    given = [name for name, _ in model.named_parameters()]
    shapes = Shapes.of(model)
    blocks = [
        {
            "attention": {"no_op": False, "n_heads_in_group": one.heads_per_group},
            "ffn": {"no_op": False, "intermediate_size": one.width},
        }
        for one in want
    ]
    config = base_config(model).to_dict() | {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "block_configs": blocks,
        "num_attention_heads": want[0].heads,
        "num_key_value_heads": max(one.groups or 0 for one in want),
        "intermediate_size": max(one.width for one in want),
        "head_dim": shapes.head_dim,
        "attention_bias": any(name.endswith("self_attn.o_proj.bias") for name in given),
        "qkv_bias": any(name.endswith("q_proj.bias") for name in given),
        "mlp_bias": any(".mlp." in name and name.endswith(".bias") for name in given),
    }
    for name in ("per_layer_config", "_name_or_path"):
        config.pop(name, None)
    return config


def decilm_names(
    model: PreTrainedModel, shapes: Shapes, want: Sequence[BlockShape], config: dict[str, Any]
) -> dict[str, Tensor]:
    """Return name -> a tensor of the shape that the checkpoint has, on the meta device. [its axes]"""
    state = model.state_dict()
    ends = {"model.embed_tokens.weight", *([] if is_tied(model) else ["lm_head.weight"])}
    names = {name: weight.to("meta") for name, weight in state.items() if "norm" in name or name in ends}
    for index, one in enumerate(want):
        path = f"model.layers.{index}"
        names.setdefault(f"{path}.input_layernorm.weight", torch.empty(shapes.hidden, device="meta"))
        for layer, (dim, (run,)) in LLAMA_RUNS.items():
            heads = {"q": one.heads or 0}.get(run, one.groups or 0)
            units = one.width if run == "n" else heads * shapes.head_dim
            size = (shapes.hidden, units) if dim else (units, shapes.hidden)
            names[f"{path}.{layer}.weight"] = torch.empty(size, device="meta")
            switch = "mlp_bias" if ".mlp." in f".{layer}" else "attention_bias" if dim else "qkv_bias"
            if config[switch]:
                names[f"{path}.{layer}.bias"] = torch.empty(size[0], device="meta")
    return names
