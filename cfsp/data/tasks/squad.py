"""SQuAD's own exact match and F1, as its evaluation scripts (v1.1 and v2.0) define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and spare white space, in this order."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(said: str, right: str) -> float:
    """1 if both are the same once they are normalised, else 0."""
    return float(normalised(said) == normalised(right))


def f1(said: str, right: str) -> float:
    """The harmonic mean of precision and recall of words; of no answer, 1 if there is none either."""
    ours, theirs = normalised(said).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    both = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * both / (len(ours) + len(theirs))


def best(measure: Callable[[str, str], float], said: str, answers: Sequence[str]) -> float:
    """The measure against the right answer that is nearest; without answers, silence is right.

    As in v2.0, right answers of which nothing is left once normalised do not count.
    """
    right = [one for one in answers if normalised(one)] or [""]
    return max(measure(said, one) for one in right)
