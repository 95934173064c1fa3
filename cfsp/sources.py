"""Sources: names for the code that a class is made of, so that what other code made is not read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cfsp.record import digest


def is_ours(kind: type) -> bool:
    """Whether a class is part of this package."""
    return kind.__module__.partition(".")[0] == "cfsp"


@cache
def code_of(kind: type) -> str | None:
    """Name the code of a class; None if it is in no file, as in a notebook.

    Of this package the files count that the class and what it inherits are in. Of another package all files
    count, because nothing says which of them the class reads.
    """
    files = {path for base in kind.__mro__ if is_ours(base) for path in module_files(base.__module__)}
    if not is_ours(kind):
        own = {*module_files(kind.__module__), *package_files(kind.__module__.partition(".")[0])}
        if not own:
            return None
        files |= own
    return digest([path.read_text() for path in sorted(files)])


def module_files(module: str) -> Iterator[Path]:
    """The file of an imported module, if it has one."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None and Path(file).is_file():
        yield Path(file)


def package_files(package: str) -> Iterator[Path]:
    """All Python files of an imported package."""
    for folder in getattr(sys.modules.get(package), "__path__", []):
        yield from Path(folder).rglob("*.py")
