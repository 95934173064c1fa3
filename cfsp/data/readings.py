"""Readings: tensors made from a text (token ids, windows of words), computed once per process.

A run also stores them in its cache, for later and parallel processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cfsp.storage.cache import OFF, Cache
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest

Reading = Mapping[str, Tensor]

CACHE: ContextVar[Cache] = ContextVar("cache of readings", default=OFF)
"""The cache of the current run. Evaluators, recoveries and users' own classes need not pass it on."""

MOST = 16
"""Most readings that a process keeps; a sweep reads few texts."""

KEPT: dict[str, Reading] = {}


@contextmanager
def kept_in(cache: Cache) -> Iterator[None]:
    """Store the readings that are made inside the block in this cache too."""
    before = CACHE.set(cache)
    try:
        yield
    finally:
        CACHE.reset(before)


def reading(what: str, label: str, of: Sequence[str | None], make: Callable[[], Reading]) -> Reading:
    """Return a reading: a stored one, or the result of `make`. Its tensors must not be changed.

    what: kind of reading, such as "stream". label: the text's label, for people. of: hashes of all that it
    depends on. If one of these is None, or `make` has no file, the reading is not stored.
    """
    code = code_of(make)
    if None in of or code is None:
        return make()
    name = f"texts/{what}-{digest([what, code, *of])}.safetensors"
    if name not in KEPT:
        kept = CACHE.get()
        with kept.alone(name):
            found = kept.get(name, read_reading)
            if found is None:
                found = make()
                kept.put(name, partial(write, found, label))
        KEPT[name] = found
    KEPT[name] = KEPT.pop(name)  # the most recently used is last
    while len(KEPT) > MOST:
        del KEPT[next(iter(KEPT))]
    return KEPT[name]


def read_reading(path: Path) -> Reading:
    """Read a stored reading. Raises ValueError if the file is not a safetensors file."""
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def write(made: Reading, label: str, path: Path) -> None:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in made.items()}, {"text": label}))


def name_documents(documents: Iterable[str]) -> str:
    """Return a hash of documents: of their text and of where each one ends."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
