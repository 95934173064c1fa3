"""Overlaps: texts that a model is both made with and measured on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from cfsp.texts import Text

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
            both = len(theirs & ours)
            if both and both >= LEAST * len(theirs):
                found.append(
                    f"{other.label} is measured on, and {both / len(theirs):.2%} of it ({both:,} of "
                    f"{len(theirs):,} windows of {WORDS} words) is in {text.label}, which the model is "
                    "made with"
                )
    return list(dict.fromkeys(found))


def fingerprints(text: Text) -> set[int]:
    """Hashes of the windows of a text, the same for the same words within this process."""
    return {hash(window) for document in text.documents() for window in windows(document)}


def windows(document: str) -> Iterator[str]:
    """Stretches of a document that another text with the same words is cut into too."""
    words = document.split()
    whole = " ".join(words[:WORDS])
    if len(whole) >= 20:
        yield whole
    for start in range(1, len(words) - WORDS + 1):
        if not zlib.crc32(words[start].encode()) % EVERY:
            yield " ".join(words[start : start + WORDS])


def strings(data: Any) -> Iterator[str]:
    """All texts in JSON data, in order."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for one in data.values() if isinstance(data, dict) else data:
            yield from strings(one)
