"""Chats: messages as a document, and as the tokens that a tokenizer's chat template makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """The messages of a row. where: the name of the row in errors."""

    where: str
    messages: Sequence[Message]

    def __post_init__(self) -> None:
        for message in self.messages:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                raise ValueError(
                    f"{self.where}: expected messages that have a role and a content, both texts"
                )

    @property
    def contents(self) -> str:
        """The contents of the messages, separated by empty lines."""
        return "\n\n".join(message["content"] for message in self.messages)

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Write the messages by the chat template; without a template, return their contents.

        Raises:
            ValueError: the template rejects them.
        """
        if not tokenizer.chat_template:
            return self.contents
        try:
            return by_template(self.messages, tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error


def by_template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, ask: bool = False) -> str:
    """Write messages by the chat template. ask: append the beginning of the answer."""
    try:
        text = tokenizer.apply_chat_template(
            [*map(dict, messages)], tokenize=False, add_generation_prompt=ask
        )
    except TemplateError as error:
        raise ValueError(f"the chat template rejects it ({error})") from error
    assert isinstance(text, str), "tokenize=False gives a text"
    return text


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
    text = by_template([*turns], tokenizer, ask=True)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
