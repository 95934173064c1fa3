"""Ranking: which of several values may be called the best; tables and the report use this rule alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

ALIKE = 0.01
"""Largest difference between the removed fractions of all parameters at which models are comparable."""


def best_of(values: Sequence[float], removed: Sequence[float], better: str) -> list[int]:
    """Return the indices of the best finite value: several if there are equal ones.

    Empty with fewer than two values, and if the removed fractions differ too much: the least pruned model
    would win. removed: each model's removed fraction of all parameters; NaN if unknown. better: "lower" or
    "higher".
    """
    if why_no_best(values, removed):
        return []
    best = (min if better == "lower" else max)(value for value in values if isfinite(value))
    return [index for index, value in enumerate(values) if value == best]


def why_no_best(values: Sequence[float], removed: Sequence[float]) -> str:
    """Return why none of the values can be called the best; "" if one can."""
    rivals = [index for index, value in enumerate(values) if not isnan(value)]
    if len(rivals) < 2:
        return "no rival"
    if not any(isfinite(values[index]) for index in rivals):
        return "all infinite"
    gone = [removed[index] for index in rivals if not isnan(removed[index])]
    if gone and max(gone) - min(gone) > ALIKE:
        return f"{min(gone):.1%} to {max(gone):.1%} removed"
    return ""
