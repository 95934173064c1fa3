"""Rows: the content of own files and of data sets of the hub, each row with its place for errors."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

Row = tuple[str, Any]
"""The place of a row, for errors, and the row."""

Stamp = tuple[str, int, int, int]

WHOLE = (".txt", ".md", ".txt.gz", ".md.gz")
"""Files that are one document."""

ROWS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
"""Files of rows. Not .csv: its separator and its quotes would be guesses."""

TABLES = (*ROWS, ".tsv", ".tsv.gz")
"""Files of labelled rows. A .tsv has GLUE's form: a line of names, then tabs between cells, no quotes."""

UTF16 = (b"\xff\xfe", b"\xfe\xff")
MISSING = object()


def find_row_files(places: Sequence[str], suffixes: Iterable[str]) -> list[Path]:
    """Return the files that places name, each once.

    A place is a file, a folder or a glob. A folder stands for all files in it with one of the suffixes,
    sorted. A place that exists is not read as a glob. Hidden files count only if they are named.

    Raises:
        ValueError: a file has another suffix, a folder has no such file, or a file is in two places.
        OSError: a place does not exist.
    """
    found: dict[Path, Path] = {}
    for place in places:
        named = [place] if os.path.exists(place) else sorted(glob(place, recursive=True))
        if not named:
            raise FileNotFoundError(f"no file matches {place!r}")
        # Links, and a glob that finds a folder and its content, give one file several names.
        new: dict[Path, Path] = {}
        for path in chain.from_iterable(below(Path(name), suffixes) for name in named):
            new.setdefault(path.resolve(), path)
        for twice in new.keys() & found.keys():
            raise ValueError(f"{new[twice]}: in two of the places {[*places]}; expected each file once")
        found |= new
    return list(found.values())


def below(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return a file, or a folder's files with one of the suffixes. Raises ValueError if there are none."""
    expected = ", ".join(suffixes)
    if not path.is_dir():
        if not path.name.lower().endswith(tuple(suffixes)):
            raise ValueError(f"{path}: expected one of {expected}")
        return [path]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.name.lower().endswith(tuple(suffixes))
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise ValueError(f"{path}: no file in this folder ends in one of {expected}")
    return found


def read_utf8(path: Path) -> str:
    """Read the text of a file, unpacked if it is a .gz, without byte order mark, with line feeds.

    Raises:
        ValueError: the text is not UTF-8 or holds a NUL, with the line; or the .gz is not whole.
    """
    data = read_bytes(path)
    try:
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole .gz file ({error})") from error
    if data.startswith(UTF16):
        raise ValueError(f"{path}, line 1: UTF-16, not UTF-8 text; re-encode it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text (byte {error.start}); re-encode it") from error
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        raise ValueError(f"{path}, line {line}: a NUL byte; expected UTF-8 text, not UTF-16 or a binary file")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path) -> bytes:
    """Read the bytes of a file. Raises ValueError if it changes meanwhile."""
    before = stamp(path)
    data = path.read_bytes()
    if stamp(path) != before:
        raise ValueError(f"{path}: changed while it was read; expected a file that nobody writes")
    return data


def stamp(path: Path) -> Stamp:
    """Return a file's name, inode, size and time. While these stay, its content counts as unchanged."""
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def json_rows(path: Path, column: str | None = None) -> Iterator[Row]:
    """Return the rows of a file, as JSON data. column: the only column to read of a .parquet; None: all.

    Raises:
        ValueError: a row cannot be read; names the row.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return parquet_rows(path, column)
    text = read_utf8(path)
    if name.endswith(".json") and text.lstrip().startswith("["):
        return json_list(path, text)
    if name.endswith(".json") and is_one_object(text):
        return iter([(str(path), json.loads(text))])
    return json_lines(path, text)  # many .json files hold lines too


def is_one_object(text: str) -> bool:
    """Return whether a text is one JSON object on several lines."""
    try:
        _, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    whole = text.strip()
    return end == len(whole) and whole.startswith("{") and "\n" in whole


def tsv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a .tsv file. A row maps the names in the first line to texts.

    Raises:
        ValueError: a name is empty or occurs twice, or a line does not have one cell for each name.
    """
    lines = read_utf8(path).split("\n")
    names = lines[0].split("\t")
    if len({*names}) < len(names) or not all(names):
        raise ValueError(f"{path}, line 1: {names}; expected the names of the columns, each once")
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            cells = line.split("\t")
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells; expected {len(names)}, one for each of "
                    f"{', '.join(names)}"
                )
            yield f"{path}, line {number}", dict(zip(names, cells, strict=True))


def json_list(path: Path, text: str) -> Iterator[Row]:
    """Yield the rows of the list in a .json file."""
    for number, row in enumerate(parsed(text, lambda line: f"{path}, line {line}: not JSON")):
        yield f"{path}, row {number}", row


def json_lines(path: Path, text: str) -> Iterator[Row]:
    """Yield the rows of a .jsonl file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parsed(line, lambda _, where=where: f"{where}: expected a JSON object on every line")


def parsed(text: str, complaint: Callable[[int], str]) -> Any:
    """Parse JSON data. Raises ValueError with the message that `complaint` makes of the faulty line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{complaint(error.lineno)} ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # more digits or brackets than Python takes
        raise ValueError(f"{complaint(1)} ({error})") from error


def parquet_rows(path: Path, column: str | None) -> Iterator[Row]:
    """Yield the rows of a .parquet file, with one column or all."""
    import pyarrow
    import pyarrow.parquet

    before = stamp(path)
    number = -1
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        top = None if column is None else [top_column(str(path), column, names)]
        for batch in file.iter_batches(columns=top):
            for row in batch.to_struct_array():
                number += 1
                yield f"{path}, row {number}", row.as_py()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row {number}: not UTF-8 text (byte {error.start}); re-encode it"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        where = f"{path}, after row {number}" if number >= 0 else str(path)
        raise ValueError(f"{where}: not a whole Parquet file ({reason})") from error
    if stamp(path) != before:
        raise ValueError(f"{path}: changed while it was read; expected a file that nobody writes")


def hub_rows(path: str, config: str | None = None, **options: Any) -> Any:
    """Load a data set of the hub. Raises ValueError if that fails."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(path, config, **options)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data set {path!r} cannot be read ({reason}); check the name and the network, or "
            "use stdlib or own files, which need no network"
        ) from error


def top_column(where: str, column: str, names: Iterable[str]) -> str:
    """Return the column of a table that holds `column`. Raises ValueError if there is none."""
    for name in (column, column.partition(".")[0]):
        if name in names:
            return name
    raise ValueError(f"{where}: no column {column!r}; it has {[*names]}")


def field(row: Any, column: str) -> Any:
    """Return the value of a column, or MISSING. `a.b` is b in a, unless a column is named `a.b`."""
    if not isinstance(row, Mapping):
        return MISSING
    if column in row:
        return row[column]
    name, _, rest = column.partition(".")
    return field(row.get(name), rest) if rest else MISSING


def check_texts(where: str, row: Any) -> None:
    """Raise ValueError if a text in a row holds half of a surrogate pair, which JSON can spell."""
    for text in strings(row):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(
                f"{where}: character {error.start} of a text is {half}, half of a surrogate pair"
            ) from error


def strings(data: Any) -> Iterator[str]:
    """Yield all texts in JSON data, in order."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping | list):
        for one in data.values() if isinstance(data, Mapping) else data:
            yield from strings(one)
