"""Texts: where calibration and evaluation get their documents from.

A `Text` hands out documents, nothing more; tokens are made in `cfsp.calibration` and
`cfsp.evaluation`. `Stdlib` needs no network: it is the documentation of Python itself.
"""

from __future__ import annotations

import ast
import glob
import gzip
import hashlib
import importlib
import json
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cfsp.checks import check_choice, check_integer
from cfsp.options import Checked

NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data", "encodings"}
"""Folders of the standard library that hold test suites, other people's code or tables."""

TOPICS = "pydoc_data.topics"
TRAIN_SHARE, CALIBRATION_SHARE = 0.8, 0.1


class Text(Checked, ABC):
    """A named list of documents."""

    separator: str = "\n\n"

    @property
    @abstractmethod
    def label(self) -> str:
        """What a record calls this text, for example `wikitext2:test`."""

    @abstractmethod
    def documents(self) -> list[str]:
        """Read the documents. Raises ValueError or OSError with what would be accepted."""

    def joined(self) -> str:
        """All documents as one string, as the pruning papers evaluate them."""
        text = self.separator.join(self.documents())
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


@lru_cache(maxsize=4)
def stdlib_documents(split: str, content: str) -> tuple[str, ...]:
    """Kept, because finding and parsing 600 files takes a second, and a job reads them four times."""
    sources = [(name, path) for name, path in stdlib_modules() if split_of(name) == split]
    if not sources:
        raise ValueError("Python's standard library has no .py files here; use own files")
    if content == "source":
        return tuple(path.read_text("utf-8") for _, path in sources)
    documents = [documentation(name, path.read_text("utf-8")) for name, path in sources]
    if split_of(TOPICS) == split:
        documents += importlib.import_module(TOPICS).topics.values()
    return tuple(document for document in documents if document.strip())


def split_of(name: str) -> str:
    """The split of a module or topic, from the first four bytes of its name's SHA-256."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    if share < TRAIN_SHARE:
        return "train"
    return "calibration" if share < TRAIN_SHARE + CALIBRATION_SHARE else "test"


def stdlib_modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every module of the standard library, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        generated = parts[-1].startswith("_sysconfigdata")
        if all(part.isidentifier() for part in parts) and not generated and not NOT_PROSE & set(parts):
            yield ".".join(parts).removesuffix(".__init__"), path


def documentation(name: str, source: str) -> str:
    """What `help()` would show of a module: every docstring below its signature; '' if none."""

    def entries(node: ast.AST, path: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            inner = f"{path}.{child.name}"
            if docstring := ast.get_docstring(child):
                is_class = isinstance(child, ast.ClassDef)
                signature = f"class {inner}" if is_class else f"{inner}({ast.unparse(child.args)})"
                yield f"{signature}\n\n{docstring}"
            yield from entries(child, inner)

    tree = ast.parse(source)
    found = [docstring] if (docstring := ast.get_docstring(tree)) else []
    found += entries(tree, name)
    return "\n\n".join([f"{name}\n{'=' * len(name)}", *found]) if found else ""


@dataclass(frozen=True)
class Files(Text):
    """Own files: .txt (one document each), .jsonl and .parquet (one document a row).

    `paths` are files or globs; `column` names the field of a row that holds the text.
    """

    paths: tuple[str, ...] | list[str] | str
    column: str = "text"

    def __post_init__(self) -> None:
        names = self._patterns() if isinstance(self.paths, str | list | tuple) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"paths={self.paths!r}: expected file names or globs")

    @property
    def label(self) -> str:
        return "files:" + ",".join(Path(path).name for path in self._patterns())

    def _patterns(self) -> list[str]:
        return [self.paths] if isinstance(self.paths, str) else list(self.paths)

    def documents(self) -> list[str]:
        readers = {".txt": self._whole, ".jsonl": self._json_lines, ".parquet": self._parquet}
        documents: list[str] = []
        for path in matching(self._patterns(), readers):
            documents += readers[path.suffix](path)
        return documents

    def _whole(self, path: Path) -> list[str]:
        return [read_utf8(path)]

    def _json_lines(self, path: Path) -> list[str]:
        rows = []
        for where, row in json_rows(path):
            if not isinstance(row, dict) or not isinstance(row.get(self.column), str):
                raise ValueError(f"{where}: expected a JSON object with the key {self.column!r} and a text")
            rows.append(row[self.column])
        return rows

    def _parquet(self, path: Path) -> list[str]:
        import pyarrow.lib
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.lib.ArrowInvalid as error:
            raise ValueError(f"{path}: not a Parquet file") from error
        names = file.schema_arrow.names
        if self.column not in names:
            raise ValueError(f"{path}: no column {self.column!r}; it has {names}")
        rows = file.read(columns=[self.column]).column(0).to_pylist()
        return all_texts(rows, f"{path}, column {self.column!r}")


@dataclass(frozen=True)
class Hub(Text):
    """A data set of the Hugging Face hub, or a local copy of one, read through `datasets`.

    `rows` bounds how many rows are read (null: all); `data_files` picks files of a large set.
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

    def documents(self) -> list[str]:
        split = self.split if self.rows is None else f"{self.split}[:{self.rows}]"
        files = {self.split: self.data_files} if self.data_files else None
        rows = hub_rows(self.path, self.config, split=split, data_files=files, revision=self.revision)
        if self.column not in rows.column_names:
            raise ValueError(f"{self.path}: no column {self.column!r}; it has {rows.column_names}")
        return all_texts(rows[self.column], f"data set {self.path!r}, column {self.column!r}")


def hub_rows(path: str, config: str | None = None, **options: Any) -> Any:
    """A data set of the hub. Raises ValueError if it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(path, config, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data set {path!r} cannot be read ({reason}); check the name and the network, or "
            "use stdlib or own files, which need none"
        ) from error


def matching(patterns: Iterable[str] | str, suffixes: Iterable[str]) -> list[Path]:
    """Files that globs name. Raises ValueError for another kind of file, OSError where there is none."""
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        paths += map(Path, matches)
    for path in paths:
        if path.suffix not in suffixes:
            raise ValueError(f"{path}: expected one of {', '.join(suffixes)}")
    return paths


def read_utf8(path: Path) -> str:
    """The text of a file, unpacked if it is a .gz. Raises ValueError if it is no UTF-8."""
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode("utf-8")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); re-encode it") from error


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row of a .jsonl file, or of the list in a .json file, stands, and the row.

    Raises:
        ValueError: a line that is no JSON; which one.
    """
    text = read_utf8(path)
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        if not isinstance(rows, list):
            raise ValueError(f"{path}: expected a list of JSON objects")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object on every line ({error.msg})"
            ) from error


def all_texts(rows: Iterable[object], where: str) -> list[str]:
    """The rows as a list. Raises ValueError at the first that is no text."""
    documents = list(rows)
    for number, row in enumerate(documents):
        if not isinstance(row, str):
            raise ValueError(f"{where}: row {number} is {type(row).__name__}; expected text in every row")
    return documents
