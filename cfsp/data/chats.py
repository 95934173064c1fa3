"""Chats: messages as plain text, or as a tokenizer's chat template writes them."""

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
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        raise ValueError(f"the chat template rejects it ({error})") from error
