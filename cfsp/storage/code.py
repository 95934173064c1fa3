"""Code: hashes of the code that computed a result, so that results of other code are not reused."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import resolve_name
from inspect import isclass, ismodule
from pathlib import Path
from types import ModuleType

from cfsp.storage.fingerprints import digest

Part = type | ModuleType | Callable


def is_ours(kind: type) -> bool:
    """Return whether a class is part of this package."""
    return package_of(kind.__module__) == "cfsp"


@cache
def code_of(*parts: Part) -> str | None:
    """Return a hash of the code of some parts; None if one is in no file, as in a notebook."""
    if any(path_of(home_of(part)) is None for part in parts):
        return None
    files = files_of(*parts)
    return digest([files[module].read_text() for module in sorted(files)])


def files_of(*parts: Part) -> dict[str, Path]:
    """Find the files that a part's results depend on, by module.

    For a part of this package: the files that define it and its base classes, and all files of this package
    that these import, directly or not. For a part of another package: all its files, because a part may use
    them without an import.
    """
    files: dict[str, Path] = {}
    waiting = {module for part in parts for module in modules_of(part)}
    while waiting:
        module = waiting.pop()
        path = path_of(module)
        if module in files or path is None:
            continue
        files[module] = path
        for name in imported_by(path, module):
            waiting |= modules_behind(name) if package_of(name) == "cfsp" else set()
    return files


def modules_behind(name: str) -> set[str]:
    """Return the modules that a name of this package may stand for: `cfsp.load` -> cfsp.checkpoints.load.

    `cfsp` itself gives its public names when they are used, so that it stands for all of them.
    """
    homes = sys.modules["cfsp"]._HOMES
    if name == "cfsp":
        return {"cfsp", *homes.values()}
    return {name, *(home for public, home in homes.items() if name == f"cfsp.{public}")}


def modules_of(part: Part) -> Iterator[str]:
    """Yield the modules that define a part and its base classes; for another package, all its modules."""
    homes = [base.__module__ for base in part.__mro__] if isclass(part) else [home_of(part)]
    foreign = package_of(home_of(part))
    yield from (home for home in homes if package_of(home) in ("cfsp", foreign))
    if foreign != "cfsp":
        for folder in map(Path, getattr(sys.modules.get(foreign), "__path__", [])):
            for path in folder.rglob("*.py"):
                yield ".".join((foreign, *path.relative_to(folder).with_suffix("").parts))


def home_of(part: Part) -> str:
    """Return the name of the module that a part is or that defines it."""
    while isinstance(part, partial):
        part = part.func
    return part.__name__ if ismodule(part) else part.__module__


def package_of(module: str) -> str:
    """Return the package that a module is in."""
    return module.partition(".")[0]


def path_of(module: str) -> Path | None:
    """Return the file of a module, imported or not; None if it has no readable file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None:
        return Path(file) if Path(file).is_file() else None
    package, *rest = module.split(".")
    for folder in map(Path, getattr(sys.modules.get(package), "__path__", [])):
        stem = folder.joinpath(*rest)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def imported_by(path: Path, module: str) -> frozenset[str]:
    """Return the names that a file imports, anywhere in it: modules, and names that may be modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = (
                resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module or ""
            )
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return frozenset(found)
