"""Ranking: which of several figures may be called the best."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

ALIKE = 0.01
"""By what the shares of all parameters gone may differ among rivals of which one is the best."""


def best_of(values: Sequence[float], removed: Sequence[float], better: str) -> list[int]:
    """Indices of the best of several values, equal ones all; none is NaN or infinite.

    There is none without a rival, nor where the rivals have lost unlike shares of all parameters: the least
    pruned would win. removed: the share that each has lost; NaN where it is not known. better: "lower" or
    "higher".
    """
    if why_no_best(values, removed):
        return []
    best = (min if better == "lower" else max)(value for value in values if isfinite(value))
    return [index for index, value in enumerate(values) if value == best]


def why_no_best(values: Sequence[float], removed: Sequence[float]) -> str:
    """Why none of the values can be called the best; "" if one can."""
    rivals = [index for index, value in enumerate(values) if not isnan(value)]
    if len(rivals) < 2:
        return "no rival"
    if not any(isfinite(values[index]) for index in rivals):
        return "all infinite"
    gone = [removed[index] for index in rivals if not isnan(removed[index])]
    if gone and max(gone) - min(gone) > ALIKE:
        return f"{min(gone):.1%} to {max(gone):.1%} removed"
    return ""
