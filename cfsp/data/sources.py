"""Sources: passages that recovery learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.data.instructions import Conversations, Rendered
from cfsp.data.readings import Reading, name_documents, reading
from cfsp.data.texts import Text
from cfsp.data.tokens import document_ids, lists, name_tokenizer, ragged
from cfsp.data.windows import IGNORED, Example
from cfsp.options import Checked


class Source(Checked, ABC):
    """Passages to learn from."""

    instructs: ClassVar[bool] = False
    """Whether the passages are instructions with answers."""

    @property
    @abstractmethod
    def reads(self) -> Text:
        """The text that the passages come from."""

    @property
    def label(self) -> str:
        """Name of the source in a record."""
        return self.reads.label

    @abstractmethod
    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        """Yield `input_ids` and `labels` of every passage, uncut, without BOS."""


@dataclass(frozen=True)
class Prose(Source):
    """Documents of a text, each ended by EOS; every token counts.

    min_tokens: documents of fewer tokens, without EOS, are skipped.
    """

    text: Text
    min_tokens: int = 0

    def __post_init__(self) -> None:
        check_integer("min_tokens", self.min_tokens, least=0)

    @property
    def reads(self) -> Text:
        return self.text

    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        end = [eos] if isinstance(eos := tokenizer.eos_token_id, int) else []
        found = 0
        for ids in document_ids(self.text, tokenizer):
            if len(ids) < self.min_tokens:
                continue
            found += 1
            yield {"input_ids": ids + end, "labels": ids + end}
        if self.min_tokens and not found:
            raise ValueError(
                f"{self.label!r} has no document of min_tokens={self.min_tokens} or more; expected a smaller "
                "min_tokens"
            )


@dataclass(frozen=True)
class Instructions(Source):
    """Questions and answers; only the answers count, unless answers_only is false."""

    instructs: ClassVar[bool] = True
    conversations: Conversations
    answers_only: bool = True

    @property
    def reads(self) -> Text:
        return self.conversations

    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        if not tokenizer.is_fast:
            raise ValueError("instructions need a fast tokenizer, which says where in the text a token lies")
        rendered = [*self.conversations.rendered(tokenizer)]
        self.check_answers(rendered, str(tokenizer.eos_token or ""))

        def make() -> Reading:
            read = bar(rendered, f"read {self.label}", "passage")
            coded = [*starmap(partial(encode_answers, tokenizer), read)]
            return {
                **ragged("ids", (ids for ids, _ in coded)),
                **ragged("answered", (own for _, own in coded)),
            }

        answers = [repr(places) for _, places in rendered]
        of = [name_documents([*(text for text, _ in rendered), *answers]), name_tokenizer(tokenizer)]
        made = reading("answers", self.label, of, make)
        for ids, answered in zip(lists(made, "ids"), lists(made, "answered"), strict=True):
            counted = answered if self.answers_only else [True] * len(ids)
            labels = [token if count else IGNORED for token, count in zip(ids, counted, strict=True)]
            yield {"input_ids": ids, "labels": labels}

    def check_answers(self, rendered: Sequence[Rendered], end: str) -> None:
        """Raise ValueError if only answers count and none says anything. end: EOS, which ends answers."""
        said = sum(
            any(text[first:last].removesuffix(end).strip() for first, last in answers)
            for text, answers in rendered
        )
        if self.answers_only and rendered and not said:
            raise ValueError(
                f"{self.label!r}: none of its {len(rendered)} rows has an answer to learn from; expected "
                "answers, or answers_only=false"
            )


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, text: str, answers: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a text, and whether each overlaps an answer."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token that contains the first letter of an answer must be predicted, even if it begins earlier.
    return coded["input_ids"], [
        any(start < last and end > first for first, last in answers) for start, end in coded["offset_mapping"]
    ]
