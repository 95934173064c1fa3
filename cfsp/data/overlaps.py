"""Overlaps: texts that a model is both made with and measured on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
import torch

from cfsp.data.readings import Reading, name_documents, reading
from cfsp.data.texts import Text

WORDS, EVERY = 20, 8
"""A window is so many words; one begins at a document's start and at about one word in so many."""

LEAST = 0.01
"""The share from which on it is told: notices and quotations make a little of any two texts the same."""


def overlaps(made_with: Iterable[Text], measured_on: Iterable[Text]) -> list[str]:
    """A sentence for every two that share 1 % of what is measured on, in windows of 20 words; reads both.

    Where windows begin depends on the words there alone, so both texts are cut at the same places. A
    document of fewer words is one window, from 20 letters on: shorter ones are headings.
    """
    measured = [(text, fingerprints(text)) for text in measured_on]
    found = []
    for text in made_with if measured else ():
        ours = fingerprints(text)
        for other, theirs in measured:
            both = len(np.intersect1d(theirs, ours, assume_unique=True))
            if both and both >= LEAST * len(theirs):
                found.append(
                    f"{other.label} is measured on, and {both / len(theirs):.2%} of it ({both:,} of "
                    f"{len(theirs):,} windows of {WORDS} words) is in {text.label}, which the model is "
                    "made with"
                )
    return list(dict.fromkeys(found))


def fingerprints(text: Text) -> np.ndarray:
    """Hashes of the windows of a text, each once; the same everywhere for the same words."""
    documents = text.documents()

    def make() -> Reading:
        found = {name(window) for document in documents for window in windows(document)}
        return {"windows": torch.tensor(sorted(found), dtype=torch.int64)}

    return reading("windows", text.label, [name_documents(documents), f"{WORDS} {EVERY}"], make)[
        "windows"
    ].numpy()


def name(window: str) -> int:
    """Eight bytes of a hash: Python's own is another one in every process."""
    return int.from_bytes(blake2b(window.encode(), digest_size=8).digest(), "big", signed=True)


def windows(document: str) -> Iterator[str]:
    """Stretches of a document that another text with the same words is cut into too."""
    words = document.split()
    whole = " ".join(words[:WORDS])
    if len(whole) >= 20:
        yield whole
    for start in range(1, len(words) - WORDS + 1):
        if not zlib.crc32(words[start].encode()) % EVERY:
            yield " ".join(words[start : start + WORDS])
