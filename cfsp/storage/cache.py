"""Cache: what is costly and the same in many runs, made once and kept on disk under a name of its content.

An entry is whole or not there, and of several jobs that want the same one makes it while the others
wait. Beside each lies its seal. An entry that is not as it was sealed, or is another's, is made again, and a
disk that is full, read-only or without locks costs the entry, not the run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cfsp.storage.about import About
from cfsp.storage.atomic import clear_parts, replacing
from cfsp.storage.locks import holding_if_possible
from cfsp.storage.seals import seal, unseal

T = TypeVar("T")
KINDS = ("metrics", "statistics", "texts")
ABOUT = "about.json"
"""Beside statistics: which model and text they are of, for people and `cfsp-cache`."""
ABANDONED = 86400.0
"""Seconds after which nobody writes a part file any more; a younger one may be a running job's."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache. age: seconds since it was written."""

    kind: str
    path: Path
    size: int
    age: float


@dataclass(frozen=True)
class Cache:
    """A folder of entries. folder: None keeps nothing, so everything is made whenever it is asked for.

    about: what the run that asks says of its model and text, kept beside what it makes.
    """

    folder: Path | None
    about: About | None = None

    @classmethod
    def at(cls, place: object) -> Cache:
        """From what a config says. Raises ValueError if it is neither a folder nor off."""
        if place is False or place == "off":
            return cls(None)
        if not isinstance(place, str | Path) or not str(place):
            raise ValueError(f"cache={place!r}: expected a folder or off")
        with suppress(OSError):  # a folder that cannot be looked at keeps nothing, which `put` says
            if Path(place).exists() and not Path(place).is_dir():
                raise ValueError(f"cache={str(place)!r} is a file; expected a folder or off")
        return cls(Path(place))

    def get(self, name: str, read: Callable[[Path], T]) -> T | None:
        """An entry, or None if it is not there or not as it was put, which is said on stderr.

        read: raises ValueError if the file is not what it should be.
        """
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            if not path.is_file():
                return None
            unseal(seal_of(path), name)
            return read(path)
        except (ValueError, OSError) as error:
            print(f"cfsp: {path} is made again ({error})", file=sys.stderr)
            return None

    def has(self, name: str) -> bool:
        """Whether an entry was put there to its end; whether it is still as it was put, `get` says."""
        with suppress(OSError):
            return self.folder is not None and seal_of(self.folder / name).is_file()
        return False

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Keep an entry; a disk that does not take it is said on stderr and costs nothing else."""
        if self.folder is None:
            return
        path = self.folder / name
        try:
            with replacing(path) as part:
                write(part)
            seal(seal_of(path), name, [path])
        except OSError as error:
            print(f"cfsp: not kept: {error}", file=sys.stderr)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other jobs from making the same thing at the same time; a killed one's hold is released.

        name: of an entry, or of a folder of entries that are made together.
        """
        if self.folder is None:
            yield
            return
        lock = self.folder / "locks" / f"{name}.lock"
        with holding_if_possible(lock, f"another job makes {name}") as held:
            if held:
                clear_entry(self.folder / name)
            yield

    def describe(self, folder: str) -> None:
        """Say in an entry's folder what `about` says; what is there stays."""
        if self.folder is None or self.about is None:
            return
        path = self.folder / folder / ABOUT
        with suppress(OSError):  # for people: no program misses it
            if not path.exists():
                with replacing(path) as part:
                    self.about.write(part)

    def entries(self, kinds: Collection[str] = KINDS) -> list[Entry]:
        """All that is kept, the newest first; what other jobs delete meanwhile is left out."""
        entries: list[Entry] = []
        if self.folder is None:
            return entries
        for kind in kinds:
            for path in (self.folder / kind).rglob("*.*"):
                if path.name.startswith(".") or path.name == ABOUT or path.is_dir():
                    continue
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    # A clock that was set back, or another machine's, may be behind the file.
                    entries.append(Entry(kind, path, stat.st_size, max(0.0, time.time() - stat.st_mtime)))
        return sorted(entries, key=lambda entry: (entry.age, entry.path))

    def clear(self, older: float = 0.0, kinds: Collection[str] = KINDS) -> list[Entry]:
        """Delete entries older than so many seconds, and what killed jobs left; return the entries."""
        if self.folder is None:
            return []
        gone = [entry for entry in self.entries(kinds) if entry.age >= older]
        for entry in gone:
            entry.path.unlink(missing_ok=True)
            seal_of(entry.path).unlink(missing_ok=True)
        for kind in (*kinds, "locks"):
            for part in (self.folder / kind).rglob(".*.part"):
                with suppress(FileNotFoundError):
                    if time.time() - part.stat().st_mtime >= max(older, ABANDONED):
                        part.unlink()
            for folder in sorted((self.folder / kind).glob("**/"), reverse=True):  # the inner ones first
                with suppress(OSError):  # it holds something still
                    if [path.name for path in folder.iterdir()] == [ABOUT]:
                        (folder / ABOUT).unlink()
                    folder.rmdir()
        return gone


OFF = Cache(None)


def clear_entry(place: Path) -> None:
    """Delete what a killed job left of an entry, or in a folder of entries."""
    with suppress(OSError):
        for part in place.glob(".*.part") if place.is_dir() else ():
            part.unlink(missing_ok=True)
        for path in (place, seal_of(place)):
            clear_parts(path)


def seal_of(path: Path) -> Path:
    """Where the seal of an entry is: beside it, hidden."""
    return path.with_name(f".{path.name}.seal")
