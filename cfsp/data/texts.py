"""Texts: where calibration and evaluation get their documents from.

A `Text` only returns documents; `cfsp.data.tokens` makes tokens of them. `Stdlib`, the documentation of
Python itself, needs no network.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_choice, check_integer
from cfsp.data.chats import Chat, Message
from cfsp.data.rows import (
    MISSING,
    ROWS,
    WHOLE,
    Stamp,
    check_texts,
    field,
    find_row_files,
    hub_rows,
    json_rows,
    read_utf8,
    stamp,
    top_column,
)
from cfsp.data.stdlib import stdlib_documents
from cfsp.options import Checked

Stamps = tuple[Stamp, ...]


class Text(Checked, ABC):
    """A named list of documents."""

    separator: str = "\n\n"

    asks: ClassVar[bool] = False
    """Whether its documents are questions with answers, which `questions` reads."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of this text in a record, for example `wikitext2:test`."""

    @abstractmethod
    def documents(self) -> list[str]:
        """Read the documents. Raises ValueError or OSError that says what is accepted."""

    def written(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the documents as a model reads them: chats are written by the tokenizer's template."""
        return self.documents()

    def questions(self, template: bool) -> list[list[Message]]:
        """Return the messages before the answer of each document. template: a chat template writes them."""
        raise ValueError(f"text {self.label!r} asks nothing; expected instructions")

    def joined(self, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """Join all documents to one string, as the pruning papers evaluate them."""
        documents = self.documents() if tokenizer is None else self.written(tokenizer)
        text = self.separator.join(documents)
        if not text.strip():
            raise ValueError(f"text {self.label!r} is empty; expected at least one document")
        return text


@dataclass(frozen=True)
class Stdlib(Text):
    """The documentation (topics, docstrings) or the source of Python's standard library.

    Every module belongs to one split by a hash of its name, so the splits stay disjoint between
    Python versions; the text itself changes a little with each. The topics of `help()` are one
    module, because they quote each other at length.
    """

    split: str
    content: str = "documentation"

    def __post_init__(self) -> None:
        check_choice("split", self.split, ("train", "calibration", "test"))
        check_choice("content", self.content, ("documentation", "source"))

    @property
    def label(self) -> str:
        return f"stdlib:{self.split}" + ("" if self.content == "documentation" else ":source")

    def documents(self) -> list[str]:
        return [*stdlib_documents(self.split, self.content)]


class Corpus(Text):
    """A text whose documents are texts or chats.

    A chat is a list of messages, each with a role and a content. It is written by the tokenizer's chat
    template; without a template or a tokenizer, its contents are joined by empty lines.
    """

    @abstractmethod
    def read(self) -> Sequence[str | Chat]:
        """Return the documents. They are cached, and read again when their files have changed."""

    def documents(self) -> list[str]:
        return [one.contents if isinstance(one, Chat) else one for one in self.read()]

    def written(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        return [one.text(tokenizer) if isinstance(one, Chat) else one for one in self.read()]


@dataclass(frozen=True)
class Files(Corpus):
    """Own files: .txt and .md are one document each, .jsonl, .json and .parquet one per row; also as .gz.

    paths: files, folders or globs; a folder stands for all such files in it.
    column: the field of a row that holds the text or a list of chat messages; `meta.text` is text in meta.
    """

    paths: tuple[str, ...] | list[str] | str
    column: str = "text"

    def __post_init__(self) -> None:
        listed(self.paths)
        if not isinstance(self.column, str) or not self.column:
            raise ValueError(f"column={self.column!r}: expected the name of a field")

    @property
    def label(self) -> str:
        return files_label(listed(self.paths))

    def read(self) -> Sequence[str | Chat]:
        return read_files(stamps(find_row_files(listed(self.paths), WHOLE + ROWS)), self.column)


@dataclass(frozen=True)
class Hub(Corpus):
    """A data set of the Hugging Face hub, or a local copy of one, read through `datasets`.

    `rows` bounds how many rows are read (null: all); `data_files` picks files of a large set. `column` is
    as in `Files`.
    """

    name: str
    path: str
    config: str | None
    split: str
    column: str = "text"
    rows: int | None = None
    data_files: str | None = None
    revision: str | None = None
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        if self.rows is not None:
            check_integer("rows", self.rows, least=1)

    @property
    def label(self) -> str:
        return f"{self.name}:{self.split}"

    def read(self) -> Sequence[str | Chat]:
        found = {*Path(self.path).rglob("*"), *map(Path, glob(self.data_files or "", recursive=True))}
        return read_hub(self, stamps(sorted(path for path in found if path.is_file())))


def stamps(paths: Sequence[Path]) -> Stamps:
    """Return the stamps of files. While these stay, the files are not read again."""
    return tuple(map(stamp, paths))


@lru_cache(maxsize=4)
def read_files(files: Stamps, column: str) -> tuple[str | Chat, ...]:
    """Read the documents of files with these stamps. Cached, because a job reads them several times."""
    documents: list[str | Chat] = []
    for name, *_ in files:
        if name.lower().endswith(WHOLE):
            documents.append(read_utf8(Path(name)))
        else:
            documents += [document(where, row, column) for where, row in json_rows(Path(name), column)]
    return tuple(documents)


@lru_cache(maxsize=4)
def read_hub(hub: Hub, local: Stamps) -> tuple[str | Chat, ...]:
    """Read the documents of a data set. local: stamps of its local files. Cached, as in `read_files`."""
    split = hub.split if hub.rows is None else f"{hub.split}[:{hub.rows}]"
    files = {hub.split: hub.data_files} if hub.data_files else None
    found = hub_rows(hub.path, hub.config, split=split, data_files=files, revision=hub.revision)
    top = top_column(hub.path, hub.column, found.column_names)
    return tuple(
        document(f"data set {hub.path!r}, row {number}", {top: value}, hub.column)
        for number, value in enumerate(found[top])
    )


def document(where: str, row: Any, column: str) -> str | Chat:
    """Return the text or the chat in a row. Raises ValueError if there is neither."""
    value = field(row, column)
    if value is MISSING:
        there = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) else f"it is {type_name(row)}"
        raise ValueError(f"{where}: expected a JSON object with the key {column!r}; {there}")
    check_texts(where, value)
    if isinstance(value, list) and value:
        return Chat(where, value)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: {column!r} is {type_name(value)}; expected text in every row, or chat messages"
        )
    return value


def type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def listed(paths: object) -> list[str]:
    """Return `paths` of a config as a list. Raises ValueError unless they are texts, at least one."""
    names = [paths] if isinstance(paths, str) else paths
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(one, str) and one for one in names)
    ):
        raise ValueError(f"paths={paths!r}: expected names of files or folders, or globs")
    return list(names)


def files_label(places: Sequence[str]) -> str:
    """Return the name of files in a record: their file names, without folders."""
    return "files:" + ",".join(Path(place).name or Path(os.path.abspath(place)).name for place in places)
