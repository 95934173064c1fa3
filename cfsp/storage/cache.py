"""Cache: costly results that many runs share, computed once and stored under a hash of their content.

An entry is complete or absent. If several jobs want the same entry, one computes it and the others wait.
Each entry has a seal beside it; an entry that does not match its seal is computed again. If the disk is full,
read-only or without locks, the entry is not stored and the run goes on.
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
KINDS = ("metrics", "statistics", "texts", "written")
ABOUT = "about.json"
"""The file beside statistics that names their model and text, for people and `cfsp-cache`."""
ABANDONED = 86400.0
"""Seconds after which a part file counts as abandoned; a younger one may belong to a running job."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache. age: seconds since it was written."""

    kind: str
    path: Path
    size: int
    age: float


@dataclass(frozen=True)
class Cache:
    """A folder of entries. folder: None stores nothing, so everything is computed each time.

    about: model and text of the current run, stored beside the statistics that it computes.
    """

    folder: Path | None
    about: About | None = None

    @classmethod
    def at(cls, place: object) -> Cache:
        """Return the cache that a config names. Raises ValueError if it is neither a folder nor off."""
        if place is False or place == "off":
            return cls(None)
        if not isinstance(place, str | Path) or not str(place):
            raise ValueError(f"cache={place!r}: expected a folder or off")
        with suppress(OSError):  # the folder cannot be inspected: `put` reports it
            if Path(place).exists() and not Path(place).is_dir():
                raise ValueError(f"cache={str(place)!r} is a file; expected a folder or off")
        return cls(Path(place))

    def get(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Read an entry. Return None if it is absent, or if it is damaged, which is reported on stderr.

        read: reads the file; raises ValueError if it is malformed.
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
        """Return whether an entry was stored completely. Only `get` checks that it is undamaged."""
        with suppress(OSError):
            return self.folder is not None and seal_of(self.folder / name).is_file()
        return False

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Store an entry. If the disk cannot be written, report it on stderr and go on."""
        if self.folder is None:
            return
        path = self.folder / name
        try:
            with replacing(path) as part:
                write(part)
            seal(seal_of(path), name, [path])
        except OSError as error:
            print(f"cfsp: not cached, the run goes on: {error}", file=sys.stderr)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other jobs from computing the same entry at the same time. A killed job's lock is released.

        name: an entry, or a folder of entries that are computed together.
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
        """Write `about` to an entry's folder, unless the file exists."""
        if self.folder is None or self.about is None:
            return
        path = self.folder / folder / ABOUT
        with suppress(OSError):  # nothing depends on it
            if not path.exists():
                with replacing(path) as part:
                    self.about.write(part)

    def entries(self, kinds: Collection[str] = KINDS) -> list[Entry]:
        """List all entries, the newest first. Skip entries that other jobs delete meanwhile."""
        entries: list[Entry] = []
        if self.folder is None:
            return entries
        for kind in kinds:
            for path in (self.folder / kind).rglob("*.*"):
                if path.name.startswith(".") or path.name == ABOUT or path.is_dir():
                    continue
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    # The file may be newer than this clock: from another machine, or the clock was set back.
                    entries.append(Entry(kind, path, stat.st_size, max(0.0, time.time() - stat.st_mtime)))
        return sorted(entries, key=lambda entry: (entry.age, entry.path))

    def check(self, entry: Entry) -> None:
        """Raise ValueError if an entry does not match its seal. Do not read it if it is older than that."""
        assert self.folder is not None, "the entry is from there"
        unseal(seal_of(entry.path), entry.path.relative_to(self.folder).as_posix(), quick=True)

    def clear(self, older: float = 0.0, kinds: Collection[str] = KINDS) -> list[Entry]:
        """Delete entries older than `older` seconds, and what killed jobs left. Return these entries."""
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
            for mark in (self.folder / kind).rglob(".*.seal"):
                if not entry_of(mark).exists():  # written before its seal, so it is lost
                    mark.unlink(missing_ok=True)
            for folder in sorted((self.folder / kind).glob("**/"), reverse=True):  # the inner ones first
                with suppress(OSError):  # it is not empty
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
    """Return the path of an entry's seal: a hidden file beside it."""
    return path.with_name(f".{path.name}.seal")


def entry_of(mark: Path) -> Path:
    """Return the path of the entry that a seal belongs to."""
    return mark.with_name(mark.name.removeprefix(".").removesuffix(".seal"))
