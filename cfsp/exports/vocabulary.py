"""Vocabulary: a tokenizer as the keys of a GGUF file, which llama.cpp tokenizes with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from gguf import GGUFWriter

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES, BYTES_ALONE, DIGITS = "ByteLevel with its pattern", "ByteLevel", "single digits"
PRE_TOKENIZERS = {
    (BYTES,): "gpt-2",
    (DIGITS, BYTES): "smollm",
    (WORDS % "{1,3}", BYTES_ALONE): "dbrx",
    (WORDS % "{1,3}", BYTES_ALONE, "whole words first"): "llama-bpe",
    (WORDS % "", BYTES_ALONE): "qwen2",
}
"""How a byte-level tokenizer splits a text before its merges -> what llama.cpp calls it."""
WORD_START = "▁"


def check_vocabulary_form(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if llama.cpp has no tokenizer that gives the same tokens."""
    table = written(tokenizer)
    check_added_tokens(table)
    if is_like_sentencepiece(table):
        check_merges(table)
        prefix_of(table)
    else:
        pre_tokenizer_of(table)
    around(tokenizer)


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Write a tokenizer. size: rows of the model's embedding; tokens beyond them are left out."""
    table = written(tokenizer)
    if is_like_sentencepiece(table):
        add_pieces(writer, table, size)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_of(table))
        writer.add_token_merges([" ".join(pair) for pair in merges_of(table)])
        tokens, kinds = tokens_of(table, size)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            getattr(writer, f"add_{name}_token_id")(number)
    before, after = around(tokenizer)
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(after)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def written(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    """Return the tokenizer.json of a tokenizer. Raises ValueError if it is no byte pair encoding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = json.loads(backend.to_str()) if backend is not None else {}
    kind = table.get("model", {}).get("type", type(tokenizer).__name__)
    if kind != "BPE":
        raise ValueError(
            f"this model's tokenizer is a {kind}, which llama.cpp has none of; expected byte pair encoding, "
            "or cfsp-export padded for engines that read tokenizer.json"
        )
    return table


def check_added_tokens(table: Mapping[str, Any]) -> None:
    """Raise ValueError if an added token takes the spaces beside it, or is found between spaces only."""
    for token in table["added_tokens"]:
        odd = [name for name in ("lstrip", "rstrip", "single_word") if token.get(name)]
        if odd:
            raise ValueError(
                f"this model's tokenizer has the added token {token['content']!r} with {odd[0]}, which "
                f"llama.cpp ignores; expected {odd[0]}=false in tokenizer.json, or cfsp-export padded for "
                "engines that read it"
            )


def is_like_sentencepiece(table: Mapping[str, Any]) -> bool:
    return bool(table["model"].get("byte_fallback"))


def merges_of(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges, in order. Older files have a pair as one text."""
    pairs = (one.split(" ") if isinstance(one, str) else one for one in table["model"]["merges"])
    return [(left, right) for left, right in pairs]


def pre_tokenizer_of(table: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for what a byte-level tokenizer does before its merges.

    Raises ValueError if it has no name for it. NFC is left out, as it is in llama.cpp itself.
    """
    steps = tuple(map(step_of, parts_of_step(table["pre_tokenizer"], "pretokenizers")))
    key = (*steps, "whole words first") if table["model"].get("ignore_merges") else steps
    normalizers = [one["type"] for one in parts_of_step(table["normalizer"], "normalizers")]
    if key not in PRE_TOKENIZERS or normalizers not in ([], ["NFC"]):
        shown = " + ".join([*normalizers, *key]) or "nothing"
        raise ValueError(
            f"this model's tokenizer does {shown} before its merges, which llama.cpp has no name for; "
            f"expected one of {', '.join(sorted(PRE_TOKENIZERS.values()))}, or cfsp-export padded for "
            "engines that read tokenizer.json"
        )
    return PRE_TOKENIZERS[key]


def parts_of_step(step: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    """Return the steps of a sequence, or the one step, or none."""
    if step is None:
        return []
    return step[inner] if step["type"] == "Sequence" else [step]


def step_of(step: Mapping[str, Any]) -> str:
    """Return one pre-tokenizer in the words of `PRE_TOKENIZERS`, or its JSON."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return BYTES if step.get("use_regex", True) else BYTES_ALONE
    if step["type"] == "Digits" and step["individual_digits"]:
        return DIGITS
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", json.dumps(step["pattern"]))
    return json.dumps(step)


def tokens_of(table: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the token of every row of the embedding, and its kind."""
    from gguf import TokenType

    added = {one["id"]: one for one in table["added_tokens"]}
    names = {number: token for token, number in table["model"]["vocab"].items()}
    names |= {number: one["content"] for number, one in added.items()}
    kinds = []
    for number in range(size):
        if number in added:
            kinds.append(TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL if number in names else TokenType.UNUSED)
    return [names.get(number, f"[PAD{number}]") for number in range(size)], kinds


def add_pieces(writer: GGUFWriter, table: Mapping[str, Any], size: int) -> None:
    """Write a vocabulary of pieces: llama.cpp merges the pair with the best score, here the first merge."""
    from gguf import TokenType

    tokens, kinds = tokens_of(table, size)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges_of(table)):
        ranks.setdefault(left + right, rank)
    for number, token in enumerate(tokens):
        if token == table["model"].get("unk_token"):
            kinds[number] = TokenType.UNKNOWN
        elif is_byte(token):
            kinds[number] = TokenType.BYTE
    # Tokens that no merge makes are single characters: any score will do.
    scores = [-float(ranks.get(token, 0)) for token in tokens]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefix_of(table))


def is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x")


def check_merges(table: Mapping[str, Any]) -> None:
    """Raise ValueError if llama.cpp would merge a pair of pieces that the tokenizer does not merge."""
    vocabulary, merges = table["model"]["vocab"], set(merges_of(table))
    apart = {one["content"] for one in table["added_tokens"]}
    for token in vocabulary:
        if token in apart or is_byte(token):
            continue
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        for left, right in pairs:
            if left in vocabulary and right in vocabulary and (left, right) not in merges:
                raise ValueError(
                    f"this model's tokenizer has bytes for unknown characters but does not merge {left!r} "
                    f"and {right!r}, which llama.cpp would; expected a tokenizer made by SentencePiece, or "
                    "cfsp-export padded for engines that read tokenizer.json"
                )


def prefix_of(table: Mapping[str, Any]) -> bool:
    """Return whether a text begins as if after a space. Raises ValueError for other normalizations.

    llama.cpp also begins so after each added token, and where the text has a space already.
    """
    steps = parts_of_step(table["normalizer"], "normalizers")
    replaced = any(map(is_space_replaced, steps))
    rest = [step for step in steps if step["type"] != "Prepend" and not is_space_replaced(step)]
    spaces = [
        step
        for step in parts_of_step(table["pre_tokenizer"], "pretokenizers")
        if not (replaced and is_split_at_spaces(step))
    ]
    odd = [step for step in spaces if step["type"] != "Metaspace" or step.get("split")]
    if rest or odd:
        raise ValueError(
            f"this model's tokenizer does {json.dumps([*rest, *odd])} before its merges, and llama.cpp does "
            "not; expected a tokenizer made by SentencePiece, or cfsp-export padded for engines that read "
            "tokenizer.json"
        )
    prepends = any(step["type"] == "Prepend" for step in steps)
    return prepends or any(step.get("prepend_scheme", "always") != "never" for step in spaces)


def is_space_replaced(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, WORD_START)


def is_split_at_spaces(step: Mapping[str, Any]) -> bool:
    """Return whether a step splits at spaces: at none, once they are replaced, as in Gemma's tokenizer."""
    return step["type"] == "Split" and step["pattern"] == {"String": " "} and not step["invert"]


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Return whether a text gets the first token of a document before it, and the last one after it.

    Raises ValueError if it gets another token.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next((start for start in range(len(full)) if full[start : start + len(bare)] == bare), 0)
    before, after = full[:at], full[at + len(bare) :]
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise ValueError(
            f"this model's tokenizer puts {before} before and {after} after a text; expected its bos and eos "
            "tokens alone, or cfsp-export padded for engines that read tokenizer.json"
        )
    return bool(before), bool(after)
