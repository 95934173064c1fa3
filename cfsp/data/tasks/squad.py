"""Exact match and F1 as in SQuAD's evaluation scripts (v1.1 and v2.0)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and extra white space, in this order."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(said: str, right: str) -> float:
    """Return 1 if both are the same after normalisation, else 0."""
    return float(normalised(said) == normalised(right))


def f1(said: str, right: str) -> float:
    """Return the harmonic mean of precision and recall of words; if one text is empty, whether both are."""
    ours, theirs = normalised(said).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    both = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * both / (len(ours) + len(theirs))


def best(measure: Callable[[str, str], float], said: str, answers: Sequence[str]) -> float:
    """Return the highest measure over the right answers. Without answers, an empty text is right.

    As in v2.0, right answers that are empty after normalisation do not count.
    """
    right = [one for one in answers if normalised(one)] or [""]
    return max(measure(said, one) for one in right)
