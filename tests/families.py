"""Tiny random models of every family, with sizes chosen so that no two axes agree by accident."""

from collections.abc import Iterable

import pytest
import torch
import transformers as t
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cfsp.model.blocks import place_kinds
from cfsp.model.find_sites import site_kinds

VOCABULARY, POSITIONS = 61, 48
# Large weights: at the usual 0.02 a two-block model is nearly linear and hides mistakes.
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)),
    "llama_mha_biased": lambda: t.LlamaForCausalLM(
        t.LlamaConfig(**LLAMA | {"num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True})
    ),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**LLAMA, sliding_window=8)),
    "qwen2": lambda: t.Qwen2ForCausalLM(
        t.Qwen2Config(**LLAMA | {"head_dim": 4, "tie_word_embeddings": True})
    ),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**LLAMA)),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**LLAMA)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LLAMA, sliding_window=8)),
    "gemma3_text": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**LLAMA, sliding_window=8)),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**LLAMA | {"head_dim": 4})),
    "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**LLAMA | {"head_dim": 4})),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**LLAMA | {"head_dim": 4})),
    "stablelm": lambda: t.StableLmForCausalLM(t.StableLmConfig(**LLAMA | {"head_dim": 4})),
    "stablelm_normed": lambda: t.StableLmForCausalLM(
        t.StableLmConfig(**LLAMA | {"head_dim": 4, "qk_layernorm": True})
    ),
    "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**LLAMA | {"head_dim": 4})),
    "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**LLAMA | {"head_dim": 4})),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**LLAMA | {"head_dim": 4})),
    "bloom": lambda: t.BloomForCausalLM(
        t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    ),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(**ENCODER, multi_query=False, bias=True, parallel_attn=False)
    ),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            word_embed_proj_dim=32,
            init_std=0.2,
        )
    ),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_inner=40,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**ENCODER, use_parallel_residual=True)),
    "bert": lambda: t.BertForMaskedLM(t.BertConfig(**ENCODER)),
    "roberta": lambda: t.RobertaForMaskedLM(
        t.RobertaConfig(**ENCODER | {"max_position_embeddings": POSITIONS + 2})
    ),
}
DECODERS = [name for name in FAMILIES if name not in ("bert", "roberta")]
DISTINCT = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2", "bloom", "falcon", "bert")
"""Families that differ most: biases; tied, fused, interleaved and transposed weights; an encoder."""


def most_distinct(families: Iterable[str]) -> list:
    """All families as test cases; those that are much like a distinct one are marked `product`."""
    return [pytest.param(name, marks=[] if name in DISTINCT else pytest.mark.product) for name in families]


def make(family: str, seed: int = 0) -> t.PreTrainedModel:
    """A tiny model in eval mode whose biases are not zero (a fresh model's are)."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.2)
    return model


def words() -> t.PreTrainedTokenizerBase:
    """A tokenizer of as many words as these models know."""
    names = ["<pad>", "<s>", *(f"w{number}" for number in range(2, VOCABULARY))]
    model = WordLevel({name: number for number, name in enumerate(names)}, unk_token="<s>")
    return t.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<s>",
        unk_token="<s>",
    )


def kinds_of(model: t.PreTrainedModel) -> list[str]:
    """The kinds of sites in a block that share no weights."""
    return place_kinds(model)


def all_kinds(model: t.PreTrainedModel) -> list[str]:
    """Every kind of site that the family has."""
    return site_kinds(model)


def batches(
    count: int = 3, size: int = 2, tokens: int = 12, seed: int = 0, padded: bool = False
) -> list[dict]:
    """Random tokens; if padded, row r of each batch ends in r masked tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(2, VOCABULARY, (size, tokens), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            for row in range(size):
                mask[row, tokens - row :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made
