"""The standard library's documentation and source as documents: a text that needs no network."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data", "encodings"}
"""Folders of the standard library that hold test suites, other people's code or tables."""

TOPICS = "pydoc_data.topics"
TRAIN_SHARE, CALIBRATION_SHARE = 0.8, 0.1


@lru_cache(maxsize=4)
def stdlib_documents(split: str, content: str) -> tuple[str, ...]:
    """Return the documents of a split. Cached: parsing 600 files takes a second, four times a job."""
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
    """Return the split of a module or topic, from the first four bytes of its name's SHA-256."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    if share < TRAIN_SHARE:
        return "train"
    return "calibration" if share < TRAIN_SHARE + CALIBRATION_SHARE else "test"


def stdlib_modules() -> Iterator[tuple[str, Path]]:
    """Yield dotted name and path of every module of the standard library, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        generated = parts[-1].startswith("_sysconfigdata")
        if all(part.isidentifier() for part in parts) and not generated and not NOT_PROSE & set(parts):
            yield ".".join(parts).removesuffix(".__init__"), path


def documentation(name: str, source: str) -> str:
    """Return what `help()` shows of a module: every docstring below its signature; '' if there is none."""

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
