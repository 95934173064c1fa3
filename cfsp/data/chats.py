"""Chats: messages as a document, and as a tokenizer's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """Messages of a row. where: the row, for errors."""

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
        """What the messages say, with empty lines between them."""
        return "\n\n".join(message["content"] for message in self.messages)

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The messages by the chat template; their contents if the tokenizer has none.

        Raises:
            ValueError: the template refuses them.
        """
        if not tokenizer.chat_template:
            return self.contents
        try:
            return by_template(self.messages, tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error


def by_template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, ask: bool = False) -> str:
    """Messages as the chat template writes them; ask: and how it begins the answer."""
    try:
        text = tokenizer.apply_chat_template(
            [*map(dict, messages)], tokenize=False, add_generation_prompt=ask
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it ({error})") from error
    assert isinstance(text, str), "tokenize=False gives a text"
    return text
