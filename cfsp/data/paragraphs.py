"""Paragraphs: texts in pieces of another size than their documents."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.texts import Text

EMPTY_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Paragraphs(Text):
    """The paragraphs of another text: its documents end at every empty line.

    rows: so many documents in a row are joined by spaces before, for sets with one sentence per document.
    """

    text: Text
    rows: int = 1

    def __post_init__(self) -> None:
        check_integer("rows", self.rows, least=1)

    @property
    def label(self) -> str:
        return self.text.label

    def documents(self) -> list[str]:
        return self.split(self.text.documents())

    def written(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        return self.split(self.text.written(tokenizer))

    def split(self, documents: list[str]) -> list[str]:
        joined = [
            " ".join(documents[first : first + self.rows]) for first in range(0, len(documents), self.rows)
        ]
        pieces = (piece.strip() for document in joined for piece in EMPTY_LINE.split(document))
        return [piece for piece in pieces if piece]
