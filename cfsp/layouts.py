"""Layouts: where each model family keeps its MLP neurons and its attention heads.

A family is a few rows of names. A letter stands for what one unit has on an axis:
`n` one MLP neuron; `q` the query channels of one key/value group; `k`, `v` its key and value
channels. ("q", "k", "v") are three runs after each other (GPT-2's fused c_attn), ("qkv",) is one
run in which every head's query, key and value lie together (GPT-NeoX).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.sites import Count, Member, Site


@dataclass(frozen=True)
class Place:
    """One kind of site within a block. Module paths are relative to the block.

    counts: attribute path -> what it counts: "units", "heads" (query heads) or "channels".
    unless: a flag of the config under which units cannot go singly, so that there is no such site.
    """

    producers: Mapping[str, tuple[str, ...]]
    consumer: str
    counts: Mapping[str, str] = field(default_factory=dict)
    unless: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its blocks (relative to the base model) and the sites in a block."""

    blocks: str
    places: Mapping[str, Place]
    reserved_positions: int = 0  # RoBERTa's position embedding holds two rows that no token uses
    causal: bool = True  # False: every token sees all others, unless the config says is_decoder


GATED_MLP = Place(
    producers={"mlp.gate_proj": ("n",), "mlp.up_proj": ("n",)},
    consumer="mlp.down_proj",
    counts={"mlp.intermediate_size": "units"},
)
SEPARATE_QKV = {"self_attn.q_proj": ("q",), "self_attn.k_proj": ("k",), "self_attn.v_proj": ("v",)}

LLAMA = Layout(
    blocks="layers",
    places={"mlp": GATED_MLP, "attention": Place(SEPARATE_QKV, consumer="self_attn.o_proj")},
)
# Its norm of the queries runs over all heads together, so the other heads change with one that goes.
OLMO2 = Layout(blocks="layers", places={"mlp": GATED_MLP})
STABLELM = Layout(
    blocks="layers",
    places={
        "mlp": GATED_MLP,
        "attention": Place(
            SEPARATE_QKV,
            consumer="self_attn.o_proj",
            counts={"self_attn.num_heads": "heads", "self_attn.num_key_value_heads": "units"},
            unless="qk_layernorm",  # a norm per head, kept in a list by the head's number
        ),
    },
)
STARCODER2 = Layout(
    blocks="layers",
    places={
        "mlp": Place({"mlp.c_fc": ("n",)}, consumer="mlp.c_proj"),
        "attention": Place(SEPARATE_QKV, consumer="self_attn.o_proj"),
    },
)
PHI = Layout(
    blocks="layers",
    places={
        "mlp": Place({"mlp.fc1": ("n",)}, consumer="mlp.fc2"),
        "attention": Place(SEPARATE_QKV, consumer="self_attn.dense"),
    },
)
# Its attention splits query, key and value by the head count of the whole model's config.
PHI3 = Layout(
    blocks="layers",
    places={"mlp": Place({"mlp.gate_up_proj": ("n", "n")}, consumer="mlp.down_proj")},
)
# Their heads differ by a slope (ALiBi) that follows from the head's number, and cannot go singly.
BLOOM = Layout(
    blocks="h",
    places={"mlp": Place({"mlp.dense_h_to_4h": ("n",)}, consumer="mlp.dense_4h_to_h")},
)
OPT = Layout(
    blocks="decoder.layers",
    places={
        "mlp": Place({"fc1": ("n",)}, consumer="fc2"),
        "attention": Place(
            SEPARATE_QKV,
            consumer="self_attn.out_proj",
            counts={"self_attn.num_heads": "heads", "self_attn.embed_dim": "channels"},
        ),
    },
)
GPT2 = Layout(
    blocks="h",
    places={
        "mlp": Place({"mlp.c_fc": ("n",)}, consumer="mlp.c_proj"),
        "attention": Place(
            producers={"attn.c_attn": ("q", "k", "v")},
            consumer="attn.c_proj",
            counts={"attn.num_heads": "heads", "attn.split_size": "channels"},
        ),
    },
)
GPT_NEOX = Layout(
    blocks="layers",
    places={
        "mlp": Place({"mlp.dense_h_to_4h": ("n",)}, consumer="mlp.dense_4h_to_h"),
        "attention": Place({"attention.query_key_value": ("qkv",)}, consumer="attention.dense"),
    },
)
BERT = Layout(
    blocks="encoder.layer",
    places={
        "mlp": Place({"intermediate.dense": ("n",)}, consumer="output.dense"),
        "attention": Place(
            producers={
                "attention.self.query": ("q",),
                "attention.self.key": ("k",),
                "attention.self.value": ("v",),
            },
            consumer="attention.output.dense",
            counts={
                "attention.self.num_attention_heads": "heads",
                "attention.self.all_head_size": "channels",
            },
        ),
    },
    causal=False,
)
ROBERTA = replace(BERT, reserved_positions=2)

LAYOUTS: dict[str, Layout] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "granite": LLAMA,
    "smollm3": LLAMA,
    "olmo2": OLMO2,
    "stablelm": STABLELM,
    "starcoder2": STARCODER2,
    "phi": PHI,
    "phi3": PHI3,
    "bloom": BLOOM,
    "falcon": BLOOM,
    "opt": OPT,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "bert": BERT,
    "roberta": ROBERTA,
}


def find_sites(model: PreTrainedModel, kinds: Sequence[str] = ("mlp",)) -> list[Site]:
    """List the sites of these kinds, block by block.

    Sizes are read off the weights, so a model that was cut before is described as it is now.

    Raises:
        ValueError: the model's type has no layout, or a kind is not one of its places.
    """
    places = places_of(model)
    if not isinstance(kinds, list | tuple) or not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"sites={kinds!r}: expected a list of one or more of {[*places]}")
    for kind in kinds:
        if kind not in places:
            raise ValueError(
                f"sites={[*kinds]}: this {model.config.model_type} has no {kind!r} whose units can go; "
                f"expected one or more of {[*places]}"
            )
    return [
        make_site(model, places[kind], kind, block, path)
        for block, path in enumerate(block_modules(model))
        for kind in kinds
    ]


def places_of(model: PreTrainedModel) -> dict[str, Place]:
    """The kinds of sites that this model has, by its family and its config."""
    return {
        kind: place
        for kind, place in layout_of(model).places.items()
        if not (place.unless and getattr(model.config, place.unless, False))
    }


def layout_of(model: PreTrainedModel) -> Layout:
    """The layout of the model's family. Raises ValueError that names the known ones."""
    model_type = getattr(model.config, "model_type", None)
    if model_type not in LAYOUTS:
        raise ValueError(
            f"model_type {model_type!r} has no layout; known: {', '.join(sorted(LAYOUTS))}. "
            f"To add it, give cfsp.layouts.LAYOUTS[{model_type!r}] a Layout "
            "(README, 'A new model family')"
        )
    return LAYOUTS[model_type]


def block_modules(model: PreTrainedModel) -> list[str]:
    """Paths of the model's blocks, in order."""
    path = layout_of(model).blocks
    if model.base_model is not model:
        path = f"{model.base_model_prefix}.{path}"
    return [f"{path}.{index}" for index in range(len(model.get_submodule(path)))]


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest input that the model takes, in tokens; None if it has no limit of its own."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else positions - layout_of(model).reserved_positions


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token sees only those before it and the model has a head that predicts the next."""
    causal = layout_of(model).causal or getattr(model.config, "is_decoder", False)
    return causal and model.can_generate()


def check_positions(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Raise ValueError if an input of so many tokens is longer than the model's positions."""
    limit = max_positions(model)
    if limit is not None and tokens > limit:
        raise ValueError(f"{what}={tokens}: the model has {limit} positions; expected at most {limit}")


def make_site(model: PreTrainedModel, place: Place, kind: str, block: int, path: str) -> Site:
    """Read one site's members and unit count off the modules of one block."""
    config = model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    query_span = heads // groups * head_dim
    spans = {"n": 1, "q": query_span, "k": head_dim, "v": head_dim}

    def axis_members(name: str, runs: tuple[str, ...], output: bool) -> Iterator[Member]:
        module = model.get_submodule(name)
        dim = axis(module, output)
        run_spans = [sum(spans[letter] for letter in run) for run in runs]
        units, rest = divmod(module.weight.shape[dim], sum(run_spans))
        if rest:
            raise ValueError(f"{name}: {module.weight.shape[dim]} is no multiple of {sum(run_spans)}")
        offset = 0
        for span in run_spans:
            has_bias = output and getattr(module, "bias", None) is not None
            yield Member(name, dim, span, offset, has_bias)
            offset += units * span

    producers = tuple(
        member
        for name, runs in place.producers.items()
        for member in axis_members(f"{path}.{name}", runs, output=True)
    )
    consumer = "n" if kind == "mlp" else "q"
    consumers = tuple(axis_members(f"{path}.{place.consumer}", (consumer,), output=False))
    units = model.get_submodule(consumers[0].module).weight.shape[consumers[0].dim] // consumers[0].span
    per_unit = {"units": 1, "heads": heads // groups, "channels": query_span}
    counts = tuple(
        Count(*f"{path}.{attribute}".rsplit(".", 1), per_unit[what])
        for attribute, what in place.counts.items()
    )
    return Site(f"{path}.{kind}", kind, block, path, units, producers, consumers, counts)


def axis(module: nn.Module, output: bool) -> int:
    """The dimension of a weight that runs over outputs (or inputs): GPT-2's Conv1D is transposed."""
    return int(isinstance(module, Conv1D)) if output else int(not isinstance(module, Conv1D))
