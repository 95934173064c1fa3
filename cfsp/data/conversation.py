"""Conversation: turns of a user and a model as the tokens that the model goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer says how a conversation is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], template: bool
) -> list[int]:
    """Token ids of a conversation in which the model speaks next.

    turns: dicts with `role` (user, assistant) and `content`. template: write them as the tokenizer's chat
    template does, which puts special tokens in; else as one text, a line break before every later turn of
    the user.

    Raises:
        ValueError: the template does not take these turns.
    """
    if not template:
        text = "".join(
            f"\n{turn['content']}" if number and turn["role"] == "user" else turn["content"]
            for number, turn in enumerate(turns)
        )
        return tokenizer(text, verbose=False)["input_ids"]
    try:
        text = tokenizer.apply_chat_template([*map(dict, turns)], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template does not take this: {error}") from error
    assert isinstance(text, str), "tokenize=False gives a text"
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
