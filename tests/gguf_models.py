"""Models, tokenizers and files for llama.cpp."""

import torch
import transformers as t
from plans import ones_for, random_plan
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.exports.gguf_file import GGUF
from cfsp.exports.vocabulary import WORDS

SIZES = {
    "vocab_size": 4040,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}

GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.0,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

CONFIGS = {
    "llama": lambda **more: t.LlamaConfig(**SIZES | more),
    "mistral": lambda **more: t.MistralConfig(**SIZES | {"sliding_window": None} | more),
    "qwen2": lambda **more: t.Qwen2Config(**SIZES | {"head_dim": 8} | more),
    "qwen3": lambda **more: t.Qwen3Config(**SIZES | {"tie_word_embeddings": True} | more),
    "phi3": lambda **more: t.Phi3Config(**SIZES | {"head_dim": 8, "pad_token_id": 0} | more),
    "granite": lambda **more: t.GraniteConfig(**SIZES | {"head_dim": 8} | GRANITE | more),
    "gemma": lambda **more: t.GemmaConfig(**SIZES | more),
}


def build(family, seed=0, **more):
    """A random model whose biases are not zero."""
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[family](**more)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                weight.normal_(mean=float("bias" not in name and family != "gemma"), std=0.2)
    return model


def pruned(model, kinds, fill=False, emptied=()):
    """Cut a model; the sites in `emptied` lose all their units. Returns the plan."""
    sites = cfsp.find_sites(model, kinds)
    fills = {site.name: ones_for([site])[site.name] if fill else None for site in sites}
    edits = random_plan(sites, fills=fills).edits
    if kinds == ["hidden"]:  # Llama's config wants a multiple of its heads
        edits = (cfsp.Cut("model.hidden", 64, tuple(range(5, 53))),)
    kept = {
        edit.site: () if edit.site.removeprefix("model.layers.") in emptied else edit.keep for edit in edits
    }
    plan = cfsp.PrunePlan(
        tuple(cfsp.Cut(edit.site, edit.units, kept[edit.site], fills[edit.site]) for edit in edits)
    )
    cfsp.apply(plan, model)
    return plan


def exported(tmp_path, model, tokenizer, plan, **options):
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    path = tmp_path / "out.gguf"
    GGUF(**options).export(tmp_path / "m", path)
    return path


TEXT = "Hello  world!\n\n  3.14159 naïve café — ¿qué? ½ 日本語 I'll we'RE\t\tdone\r\n x=12345;  <|end|> y "


def trained(pre, normalizer=None, **model):
    """A byte-level tokenizer that was trained on a few lines."""
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator([TEXT * 3, (REFERENCE / "config.json").read_text()], trainer)
    return t.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", bos_token="<|end|>")


def split(pattern):
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])


def digits():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])


TOKENIZERS = {
    "gpt-2": lambda: trained(pre_tokenizers.ByteLevel(False)),
    "smollm": lambda: trained(digits()),
    "dbrx": lambda: trained(split(WORDS % "{1,3}")),
    "llama-bpe": lambda: trained(split(WORDS % "{1,3}"), ignore_merges=True),
    "qwen2": lambda: trained(split(WORDS % ""), normalizers.NFC()),
}


SPACES = normalizers.Replace(" ", "▁")


def pieces(normalizer=None, pre=None, **added):
    """A tokenizer as SentencePiece makes them: pieces that merge in the order of their scores, and bytes."""
    lines = [TEXT * 3, (REFERENCE / "config.json").read_text()]
    learner = Tokenizer(models.BPE())
    learner.normalizer = SPACES
    trainer = trainers.BpeTrainer(vocab_size=300, limit_alphabet=80)
    learner.train_from_iterator([line.replace("<|end|>", "") for line in lines], trainer)
    tokens = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    every = ["<unk>", "<|end|>", *(f"<0x{one:02X}>" for one in range(256)), *tokens]
    order = {token: number for number, token in enumerate(every)}
    merges = [
        (token[:at], token[at:])
        for token in tokens
        for at in range(1, len(token))
        if token[:at] in order and token[at:] in order
    ]
    made = Tokenizer(models.BPE(order, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer, made.pre_tokenizer = normalizer, pre
    replaced = decoders.Replace("▁", " ")
    made.decoder = decoders.Sequence([replaced, decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<|end|>", normalized=False, **added)])
    made.add_tokens([AddedToken("\n\n", normalized=False)])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", bos_token="<|end|>", unk_token="<unk>"
    )


def metaspace(scheme):
    return pieces(pre=pre_tokenizers.Metaspace("▁", scheme, split=False))


PIECES = {
    "always": lambda: pieces(normalizers.Sequence([normalizers.Prepend("▁"), SPACES])),
    "never": lambda: metaspace("never"),
    "gemma": lambda: pieces(SPACES, pre_tokenizers.Split(" ", "merged_with_previous")),
}
