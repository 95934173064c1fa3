"""Overlaps: texts for evaluation that calibration or recovery reads too."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
import torch

from cfsp.data.readings import Reading, name_documents, reading
from cfsp.data.texts import Text

WORDS, EVERY = 20, 8
"""A window has `WORDS` words; one begins at a document's start and at about one word in `EVERY`."""

LEAST = 0.01
"""Smallest fraction that is reported: notices and quotations occur in any two texts."""


def overlaps(made_with: Iterable[Text], measured_on: Iterable[Text]) -> list[str]:
    """Return a sentence for each pair that shares 1 % of the evaluation text, in windows of 20 words.

    A window begins at words that a hash selects, so equal passages of two texts give equal windows. A
    document of fewer words is one window if it has at least 20 letters; shorter ones are headings.
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
                    f"{len(theirs):,} windows of {WORDS} words) is in {text.label}, which calibration "
                    "or recovery reads"
                )
    return list(dict.fromkeys(found))


def fingerprints(text: Text) -> np.ndarray:
    """Return the distinct hashes of a text's windows. Equal words give equal hashes on every machine."""
    documents = text.documents()

    def make() -> Reading:
        found = {name(window) for document in documents for window in windows(document)}
        return {"windows": torch.tensor(sorted(found), dtype=torch.int64)}

    return reading("windows", text.label, [name_documents(documents), f"{WORDS} {EVERY}"], make)[
        "windows"
    ].numpy()


def name(window: str) -> int:
    """Return a hash of eight bytes. Python's own hash differs between processes."""
    return int.from_bytes(blake2b(window.encode(), digest_size=8).digest(), "big", signed=True)


def windows(document: str) -> Iterator[str]:
    """Yield the windows of a document. Equal passages of two documents give equal windows."""
    words = document.split()
    whole = " ".join(words[:WORDS])
    if len(whole) >= 20:
        yield whole
    for start in range(1, len(words) - WORDS + 1):
        if not zlib.crc32(words[start].encode()) % EVERY:
            yield " ".join(words[start : start + WORDS])
