"""Labelled rows: the examples of a task, from own files or from the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cfsp.data.rows import TABLES, Row, check_texts, find_row_files, hub_rows, json_rows, strings, tsv_rows
from cfsp.data.texts import Stamps, Text, files_label, listed, stamps

NO_ROWS = "a task's data: expected paths=FILE, or hub=NAME"

LabelledRow = tuple[str, Mapping[str, Any]]
"""The place of a row, for errors, and the row."""


@dataclass(frozen=True)
class LabelledRows(Text):
    """Rows with named columns. As a text, each row is a document.

    paths: own files, folders or globs of .tsv, .jsonl, .json (also as .gz) or .parquet. hub: the name of a
        data set there, read only without paths. config: a part of that data set.
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
            raise ValueError(NO_ROWS)

    @property
    def label(self) -> str:
        if self.paths is not None:
            return files_label(listed(self.paths))
        return ":".join(part for part in (self.hub, self.config, self.split) if part is not None)

    def documents(self) -> list[str]:
        """Return the texts of each row. A text of one word is left out: it is a label or a number."""
        return [" ".join(one for one in strings(row) if " " in one.strip()) for _, row in self.rows()]

    def rows(self) -> Sequence[LabelledRow]:
        """Return all rows. Raises ValueError if a row has no named columns, or if there are no rows."""
        if self.paths is not None:
            found = read_row_files(stamps(find_row_files(listed(self.paths), TABLES)))
        else:
            found = read_hub_rows(self)
        if not found:
            raise ValueError(f"{self.label} has no rows; expected at least one")
        return found


@lru_cache(maxsize=4)
def read_row_files(files: Stamps) -> tuple[LabelledRow, ...]:
    """Read the rows of files with these stamps. Cached, because a job reads them several times."""
    return tuple(checked_rows(row for name, *_ in files for row in rows_in(Path(name))))


@lru_cache(maxsize=4)
def read_hub_rows(rows: LabelledRows) -> tuple[LabelledRow, ...]:
    """Read the rows of a data set of the hub. Cached, as in `read_row_files`."""
    if rows.hub is None:
        raise ValueError(NO_ROWS)
    found = hub_rows(rows.hub, rows.config, split=rows.split, revision=rows.revision)
    places = ((f"data set {rows.label!r}, row {number}", row) for number, row in enumerate(found))
    return tuple(checked_rows(places))


def rows_in(path: Path) -> Iterator[Row]:
    """Return the rows of a file."""
    return tsv_rows(path) if path.name.lower().endswith((".tsv", ".tsv.gz")) else json_rows(path)


def checked_rows(rows: Iterator[Row]) -> Iterator[LabelledRow]:
    """Yield the rows. Raises ValueError at the first without named columns, or with a broken text."""
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: expected a JSON object")
        check_texts(where, row)
        yield where, row


def text_in(where: str, row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column. Raises ValueError if there is none."""
    value = value_in(where, row, column)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {type(value).__name__}; expected text")
    return value


def value_in(where: str, row: Mapping[str, Any], column: str) -> Any:
    """Return the value in a column. Raises ValueError, with the row's columns, if there is none."""
    if column not in row or row[column] is None:
        state = "is null" if column in row else f"is not there; it has {', '.join(map(repr, row))}"
        raise ValueError(f"{where}: {column!r} {state}; expected a value in every row")
    return row[column]
