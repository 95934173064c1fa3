"""Cache: what is costly and the same in many runs, made once and kept on disk under a name of its content.

An entry is whole or not there, and of several jobs that want the same one makes it while the others
wait. An entry that cannot be read is made again, and a disk that is full costs the entry, not the run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.about import About
from cfsp.atomic import replacing

T = TypeVar("T")
KINDS = ("metrics", "statistics")
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
        if Path(place).exists() and not Path(place).is_dir():
            raise ValueError(f"cache={str(place)!r} is a file; expected a folder or off")
        return cls(Path(place))

    def get(self, name: str, read: Callable[[Path], T]) -> T | None:
        """An entry, or None if it is not there or cannot be read, which is said on stderr.

        read: raises ValueError if the file is not what it should be.
        """
        if self.folder is None or not (self.folder / name).is_file():
            return None
        try:
            return read(self.folder / name)
        except (ValueError, OSError) as error:
            print(f"cfsp: {self.folder / name} cannot be read and is made again ({error})", file=sys.stderr)
            return None

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Keep an entry; a disk that does not take it is said on stderr and costs nothing else."""
        if self.folder is None:
            return
        try:
            with replacing(self.folder / name) as part:
                write(part)
        except OSError as error:
            print(f"cfsp: {self.folder / name} cannot be kept ({error})", file=sys.stderr)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other jobs from making the same thing at the same time; a killed one's hold is released."""
        if self.folder is None:
            yield
            return
        with holding(self.folder / "locks" / f"{name}.lock", f"another job makes {name}"):
            yield

    def describe(self, folder: str) -> None:
        """Say in an entry's folder what `about` says; what is there stays."""
        if self.folder is not None and self.about and not (self.folder / folder / ABOUT).exists():
            self.put(f"{folder}/{ABOUT}", self.about.write)

    def entries(self, kinds: Collection[str] = KINDS) -> list[Entry]:
        """All that is kept, the newest first; what other jobs delete meanwhile is left out."""
        entries = []
        for kind in kinds if self.folder is not None else ():
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
        gone = [entry for entry in self.entries(kinds) if entry.age >= older]
        for entry in gone:
            entry.path.unlink(missing_ok=True)
        for kind in (*kinds, "locks") if self.folder is not None else ():
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

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integers that its bits are read as."""


@contextmanager
def holding(lock: Path, why: str) -> Iterator[None]:
    """Hold a lock that the system releases with the process; say why one waits, if one waits.

    It is a flock: machines that share a folder exclude each other where the file system carries flocks
    between them (local disks, NFS since Linux 2.6.12, Lustre mounted with `flock`). The file goes with
    the hold; one that a killed process left holds nothing and is taken over.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    hold = FileLock(lock)
    try:
        hold.acquire(timeout=1)
    except Timeout:
        print(f"cfsp: waiting: {why}", file=sys.stderr)
        hold.acquire()
    try:
        yield
    finally:
        # While it is held: who waits on the file that goes notices, and takes a new one (filelock does).
        lock.unlink(missing_ok=True)
        hold.release()


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Name a model by its config and, of every weight, name, shape, dtype and the sums of its bits.

    The sums run along each axis, in integers, so they are exact, the same on every machine, and several times
    faster than a hash of all bytes; a change of one element, or of two places, changes them. A fine-tuned or
    pruned copy differs; the same checkpoint agrees from wherever it was loaded.
    """
    config = model.config.to_dict()
    for place in ("_name_or_path", "transformers_version"):
        config.pop(place, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        bits = weight.detach().contiguous().view(BITS[weight.element_size()])
        for axis in range(bits.dim()):
            others = [other for other in range(bits.dim()) if other != axis]
            sums = bits.sum(others, dtype=torch.int64) if others else bits
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_batches(batches: Iterable[Mapping[str, Tensor]]) -> str:
    """Name batches by everything in them, and by how they are cut."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
