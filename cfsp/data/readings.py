"""Readings: what is made of a text (token ids, windows of words), made once for each process.

A run also keeps them in its cache, for the processes that come later or work beside it.
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
"""Set by a run around its work: evaluators, recoveries and users' own parts need not hand it on."""

MOST = 16
"""Readings that a process keeps: those of the few texts that a sweep reads."""

KEPT: dict[str, Reading] = {}


@contextmanager
def kept_in(cache: Cache) -> Iterator[None]:
    """Keep what is made inside in this cache too."""
    before = CACHE.set(cache)
    try:
        yield
    finally:
        CACHE.reset(before)


def reading(what: str, label: str, of: Sequence[str | None], make: Callable[[], Reading]) -> Reading:
    """A reading: the one that was made before, or made now. Nobody may write to its tensors.

    what: for example "stream". label: the text's, for people. of: names of all that it depends on; where one
    is None, or `make` is in no file, nothing is kept.
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
    KEPT[name] = KEPT.pop(name)  # the last one used goes last
    while len(KEPT) > MOST:
        del KEPT[next(iter(KEPT))]
    return KEPT[name]


def read_reading(path: Path) -> Reading:
    """Raises ValueError if the file is no safetensors file."""
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def write(made: Reading, label: str, path: Path) -> None:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in made.items()}, {"text": label}))


def name_documents(documents: Iterable[str]) -> str:
    """Name documents by their letters and by where each one ends."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
