"""Overlaps: texts that a model is both made with and measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cfsp.texts import Text


def overlaps(made_with: Iterable[Text], measured_on: Iterable[Text]) -> list[str]:
    """A sentence for every two that share documents, by content; reads both.

    Documents count from 20 letters on: shorter ones are headings and blank lines.
    """
    found = []
    texts = list(made_with)
    prints = [fingerprints(text) for text in texts]
    for measured in measured_on:
        theirs = fingerprints(measured)
        for text, ours in zip(texts, prints, strict=True):
            if both := len(theirs & ours):
                found.append(
                    f"{measured.label} is measured on, and {both} of its {len(theirs)} documents are in "
                    f"{text.label}, which the model is made with"
                )
    return list(dict.fromkeys(found))


def fingerprints(text: Text) -> set[bytes]:
    """Hashes of the documents."""
    documents = (document.strip() for document in text.documents())
    return {hashlib.sha256(one.encode()).digest() for one in documents if len(one) >= 20}
