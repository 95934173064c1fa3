"""Tables: rows of labelled data, from own files or from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cfsp.data.rows import TABLES, check_unicode, hub_rows, json_rows, matching, strings, tsv_rows
from cfsp.data.texts import Stamps, Text, files_label, listed, stamps

Labelled = tuple[str, Mapping[str, Any]]
"""Where a row stands, for errors, and the row."""


@dataclass(frozen=True)
class Table(Text):
    """Rows with columns.

    paths: own files, folders or globs of .tsv, .jsonl, .json (.gz of these too) or .parquet; they take the
        place of `hub`, the name of a data set on the hub, of which `config` is a part.
    """

    paths: Sequence[str] | str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.paths is not None:
            listed(self.paths)
        elif self.hub is None:
            raise ValueError("a task's data: expected paths=FILE, or hub=NAME")

    @property
    def label(self) -> str:
        if self.paths is not None:
            return files_label(listed(self.paths))
        return ":".join(part for part in (self.hub, self.config, self.split) if part is not None)

    def documents(self) -> list[str]:
        """The texts of each row; what is one word is a label or a number."""
        return [" ".join(one for one in strings(row) if " " in one.strip()) for _, row in self.rows()]

    def rows(self) -> Sequence[Labelled]:
        """All rows. Raises ValueError for one that is no mapping of names, and if there are none."""
        if self.paths is not None:
            found = read_tables(stamps(matching(listed(self.paths), TABLES)))
        else:
            found = read_set(self)
        if not found:
            raise ValueError(f"{self.label} has no rows; expected at least one")
        return found


@lru_cache(maxsize=4)
def read_tables(files: Stamps) -> tuple[Labelled, ...]:
    """The rows of files that are as their stamps say."""
    return tuple(checked(row for name, *_ in files for row in rows_of(Path(name))))


@lru_cache(maxsize=4)
def read_set(table: Table) -> tuple[Labelled, ...]:
    """The rows of a data set of the hub."""
    found = hub_rows(table.hub, table.config, split=table.split, revision=table.revision)
    return tuple(
        checked((f"data set {table.label!r}, row {number}", row) for number, row in enumerate(found))
    )


def rows_of(path: Path) -> Iterator[Labelled]:
    return tsv_rows(path) if path.name.lower().endswith((".tsv", ".tsv.gz")) else json_rows(path)


def checked(rows: Iterator[Labelled]) -> Iterator[Labelled]:
    """The rows. Raises ValueError at the first that is no mapping, or holds a text that is none."""
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: expected a JSON object")
        check_unicode(where, row)
        yield where, row


def text_in(where: str, row: Mapping[str, Any], column: str) -> str:
    """The text in a column. Raises ValueError that names the columns that are there."""
    value = value_in(where, row, column)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {type(value).__name__}; expected text")
    return value


def value_in(where: str, row: Mapping[str, Any], column: str) -> Any:
    """What is in a column. Raises ValueError that names the columns that are there."""
    if column not in row or row[column] is None:
        state = "is null" if column in row else f"is not there; it has {', '.join(map(repr, row))}"
        raise ValueError(f"{where}: {column!r} {state}; expected a value in every row")
    return row[column]
