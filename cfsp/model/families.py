"""Layouts: where each model family keeps its MLP neurons and its attention heads.

A family is a few rows of names. A letter stands for the places of one unit on an axis:
`n` one MLP neuron; `q` the query channels of one key/value group; `k`, `v` its key and value
channels. ("q", "k", "v") are three runs after each other (GPT-2's fused c_attn), ("qkv",) is one
run in which every head's query, key and value lie together (GPT-NeoX).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Place:
    """One kind of site within a block. Module paths are relative to the block.

    counts: attribute path -> what it counts: "width" (neurons), "heads" (query heads), "groups"
        (key/value groups), "heads_per_group", or "channels" (of all query heads). "module.config.x" is
        attribute x of the config as the module sees it.
    whole: the module that is removed with the last unit; None: an attention cannot lose its last unit.
    biased: an attention whose scores have a bias for each head, which all blocks share (T5).
    unless: a flag of the config; if it is set, single units cannot go and the site does not exist.
    """

    producers: Mapping[str, tuple[str, ...]]
    consumer: str
    counts: Mapping[str, str] = field(default_factory=dict)
    whole: str | None = None
    unless: str | None = None
    biased: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its blocks (relative to the base model) and the sites in a block.

    names: size of a block -> its name in the config.
    norms: norms of a block that read the residual stream; empty if its width cannot be cut.
    embeddings, last_norm: modules outside the blocks that have the residual width.
    decoder: the second stack of blocks, if the model is an encoder-decoder.
    variants: a flag of the config -> the layout of models in which it is set.
    """

    blocks: str
    places: Mapping[str, Place]
    names: Mapping[str, str] = field(default_factory=lambda: SIZE_NAMES)
    norms: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    last_norm: str = "norm"
    reserved_positions: int = 0  # RoBERTa's position embedding holds two rows that no token uses
    causal: bool = True  # False: every token sees all others, unless the config says is_decoder
    decoder: Layout | None = None
    variants: Mapping[str, Layout] = field(default_factory=dict)


SIZE_NAMES = {"width": "intermediate_size", "heads": "num_attention_heads", "groups": "num_key_value_heads"}
MULTI_HEAD = {"width": "intermediate_size", "heads": "num_attention_heads"}

GATED_MLP = Place(
    producers={"mlp.gate_proj": ("n",), "mlp.up_proj": ("n",)},
    consumer="mlp.down_proj",
    counts={"mlp.intermediate_size": "width"},
)
SEPARATE_QKV = {"self_attn.q_proj": ("q",), "self_attn.k_proj": ("k",), "self_attn.v_proj": ("v",)}
GROUPED = {"self_attn.num_key_value_groups": "heads_per_group"}

LLAMA = Layout(
    blocks="layers",
    places={
        "mlp": GATED_MLP,
        "attention": Place(SEPARATE_QKV, consumer="self_attn.o_proj", counts=GROUPED, whole="self_attn"),
    },
    norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_tokens",),
)
# Gemma scales its embeddings by the square root of the config's residual width, so it must not change.
GEMMA = replace(LLAMA, norms=(), embeddings=())
# OLMo 2 normalises the queries of all heads together, so removing a head would change the others.
OLMO2 = Layout(blocks="layers", places={"mlp": GATED_MLP})
STABLELM = Layout(
    blocks="layers",
    places={
        "mlp": GATED_MLP,
        "attention": Place(
            SEPARATE_QKV,
            consumer="self_attn.o_proj",
            counts={"self_attn.num_heads": "heads", "self_attn.num_key_value_heads": "groups", **GROUPED},
            whole="self_attn",
            unless="qk_layernorm",  # one norm per head, in a list by the head's index
        ),
    },
)
STARCODER2 = replace(
    LLAMA, places={**LLAMA.places, "mlp": Place({"mlp.c_fc": ("n",)}, consumer="mlp.c_proj")}
)
PHI = Layout(
    blocks="layers",
    places={
        "mlp": Place({"mlp.fc1": ("n",)}, consumer="mlp.fc2"),
        "attention": Place(SEPARATE_QKV, consumer="self_attn.dense", counts=GROUPED, whole="self_attn"),
    },
    norms=("input_layernorm",),
    embeddings=("embed_tokens",),
    last_norm="final_layernorm",
)
PHI3 = replace(
    LLAMA,
    places={
        "mlp": Place({"mlp.gate_up_proj": ("n", "n")}, consumer="mlp.down_proj"),
        "attention": Place(
            {"self_attn.qkv_proj": ("q", "k", "v")},
            consumer="self_attn.o_proj",
            counts={
                "self_attn.config.num_attention_heads": "heads",
                "self_attn.num_key_value_heads": "groups",
                **GROUPED,
            },
            whole="self_attn",
        ),
    },
)
# A head's ALiBi slope follows from its index, so single heads cannot go.
BLOOM = Layout(
    blocks="h",
    places={"mlp": Place({"mlp.dense_h_to_4h": ("n",)}, consumer="mlp.dense_4h_to_h")},
    names={"width": "intermediate_size"},
)
FALCON = replace(BLOOM, names={"width": "ffn_hidden_size"})
OPT = Layout(
    blocks="decoder.layers",
    places={
        "mlp": Place({"fc1": ("n",)}, consumer="fc2"),
        "attention": Place(
            SEPARATE_QKV,
            consumer="self_attn.out_proj",
            counts={"self_attn.num_heads": "heads", "self_attn.embed_dim": "channels"},
            whole="self_attn",
        ),
    },
    names={"width": "ffn_dim", "heads": "num_attention_heads"},
)
GPT2 = Layout(
    blocks="h",
    places={
        "mlp": Place({"mlp.c_fc": ("n",)}, consumer="mlp.c_proj"),
        "attention": Place(
            producers={"attn.c_attn": ("q", "k", "v")},
            consumer="attn.c_proj",
            counts={"attn.num_heads": "heads", "attn.split_size": "channels"},
            whole="attn",
        ),
    },
    names={"width": "n_inner", "heads": "num_attention_heads"},
)
GPT_NEOX = Layout(
    blocks="layers",
    places={
        "mlp": Place({"mlp.dense_h_to_4h": ("n",)}, consumer="mlp.dense_4h_to_h"),
        "attention": Place(
            {"attention.query_key_value": ("qkv",)}, consumer="attention.dense", whole="attention"
        ),
    },
    names=MULTI_HEAD,
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
    names=MULTI_HEAD,
    causal=False,
)
ROBERTA = replace(BERT, reserved_positions=2)


def bart_attention(path: str) -> Place:
    """Return BART's attention at this path in a block."""
    return Place(
        producers={f"{path}.q_proj": ("q",), f"{path}.k_proj": ("k",), f"{path}.v_proj": ("v",)},
        consumer=f"{path}.out_proj",
        counts={f"{path}.num_heads": "heads", f"{path}.embed_dim": "channels"},
        whole=path,
    )


BART_ENCODER = {"mlp": Place({"fc1": ("n",)}, consumer="fc2"), "attention": bart_attention("self_attn")}
BART = Layout(
    blocks="encoder.layers",
    places=BART_ENCODER,
    names={"width": "encoder_ffn_dim", "heads": "encoder_attention_heads"},
    causal=False,
    decoder=Layout(
        blocks="decoder.layers",
        places={**BART_ENCODER, "cross_attention": bart_attention("encoder_attn")},
        names={"width": "decoder_ffn_dim", "heads": "decoder_attention_heads"},
    ),
)


def t5_attention(path: str) -> Place:
    """Return T5's attention at this path in a block. The first block's makes the bias that all blocks add."""
    return Place(
        producers={f"{path}.q": ("q",), f"{path}.k": ("k",), f"{path}.v": ("v",)},
        consumer=f"{path}.o",
        counts={f"{path}.n_heads": "heads", f"{path}.inner_dim": "channels"},
        biased=path,
    )


def t5_mlp(path: str, inputs: tuple[str, ...]) -> Place:
    """Return T5's MLP at this path in a block. inputs: names of the layers that make the neurons."""
    return Place({f"{path}.{name}": ("n",) for name in inputs}, consumer=f"{path}.wo")


def t5(inputs: tuple[str, ...]) -> Layout:
    """Return the layout of a T5 whose MLPs have these input layers."""
    attention = t5_attention("layer.0.SelfAttention")
    names = {"width": "d_ff", "heads": "num_heads"}
    decoder = {
        "mlp": t5_mlp("layer.2.DenseReluDense", inputs),
        "attention": attention,
        "cross_attention": t5_attention("layer.1.EncDecAttention"),
    }
    return Layout(
        blocks="encoder.block",
        places={"mlp": t5_mlp("layer.1.DenseReluDense", inputs), "attention": attention},
        names=names,
        causal=False,
        decoder=Layout(blocks="decoder.block", places=decoder, names=names),
    )


T5 = replace(t5(("wi",)), variants={"is_gated_act": t5(("wi_0", "wi_1"))})

LAYOUTS: dict[str, Layout] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "granite": LLAMA,
    "smollm3": LLAMA,
    "olmo2": OLMO2,
    "stablelm": STABLELM,
    "starcoder2": STARCODER2,
    "phi": PHI,
    "phi3": PHI3,
    "bloom": BLOOM,
    "falcon": FALCON,
    "opt": OPT,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "bert": BERT,
    "roberta": ROBERTA,
    "bart": BART,
    "t5": T5,
}
