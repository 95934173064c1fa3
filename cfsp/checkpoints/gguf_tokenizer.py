"""GGUF tokenizers: the byte-level vocabulary of a file as a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Kinds of tokens in a file: special ones, ones that are found in a text as they are, and holes."""

WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")
PLAIN = ("default", "gpt-2")
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def byte_level_tokenizer(keys: Mapping[str, Any], longest: int) -> PreTrainedTokenizerBase:
    """Make the tokenizer that the keys below `tokenizer.` describe. longest: tokens that the model reads.

    transformers' own reader takes a tokenizer's class by the family, which may add tokens and split a text in
    another way than the file says.

    Raises ValueError if the file splits a text in an unknown way.
    """
    tokens, kinds = keys["ggml.tokens"], keys.get("ggml.token_type") or []
    kinds = [*kinds, *[1] * (len(tokens) - len(kinds))]
    splits = str(keys.get("ggml.pre") or PLAIN[0])
    vocabulary = {
        token: at for at, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED
    }
    merges = [tuple(one.split(" ", 1)) for one in keys["ggml.merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=splits in WHOLE_WORDS_FIRST))
    made.pre_tokenizer, made.decoder = pre_tokenizer(splits), decoders.ByteLevel()
    for kind in (CONTROL, USER_DEFINED):
        of_kind = [token for token, one in zip(tokens, kinds, strict=True) if one == kind]
        made.add_tokens([AddedToken(one, special=kind == CONTROL, normalized=False) for one in of_kind])
    numbers = {name: keys.get(f"ggml.{key}_token_id") for name, key in SPECIAL.items()}
    special = {name: tokens[number] for name, number in numbers.items() if number is not None}
    if around := template(keys, special):
        ids = [(token, vocabulary[token]) for token in around if token != "$A"]
        made.post_processor = processors.TemplateProcessing(single=" ".join(around), special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=longest,
        chat_template=keys.get("chat_template"),
        **special,
    )


def template(keys: Mapping[str, Any], special: Mapping[str, str]) -> Sequence[str]:
    """Return what a text becomes, "$A" being the text; nothing if it stays as it is."""
    before = [special["bos_token"]] if keys.get("ggml.add_bos_token") and "bos_token" in special else []
    after = [special["eos_token"]] if keys.get("ggml.add_eos_token") and "eos_token" in special else []
    return [*before, "$A", *after] if before or after else []


def pre_tokenizer(splits: str) -> pre_tokenizers.PreTokenizer:
    """Return what splits a text before its merges. Raises ValueError if llama.cpp's name is unknown."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if splits in PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if splits == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if splits not in GGUF_PRE_TOKENIZER_SPLITS:
        known = ", ".join(sorted([*PLAIN, "smollm", *GGUF_PRE_TOKENIZER_SPLITS]))
        raise ValueError(
            f"tokenizer.ggml.pre={splits} in a GGUF file: nothing here splits a text so; expected one of "
            f"{known}, or the model's checkpoint"
        )
    words = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[splits]), "isolated")
    alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, alone])
