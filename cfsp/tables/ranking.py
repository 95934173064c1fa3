"""Ranking: which of several values may be called the best; tables and the report use this rule alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

ALIKE = 0.01
"""Largest difference between the removed fractions of all parameters at which models are comparable, and
between the shares of their units that tokens use."""


def best_of(
    values: Sequence[float], removed: Sequence[float], better: str, active: Sequence[float] = ()
) -> list[int]:
    """Return the indices of the best finite value: several if there are equal ones.

    Empty with fewer than two values, and if the removed or the active shares differ too much: the least
    pruned model would win. removed: each model's removed fraction of all parameters; NaN if unknown.
    better: "lower" or "higher". active: the share of its units that a token uses; () if all are used.
    """
    if why_no_best(values, removed, active):
        return []
    best = (min if better == "lower" else max)(value for value in values if isfinite(value))
    return [index for index, value in enumerate(values) if value == best]


def why_no_best(values: Sequence[float], removed: Sequence[float], active: Sequence[float] = ()) -> str:
    """Return why none of the values can be called the best; "" if one can."""
    rivals = [index for index, value in enumerate(values) if not isnan(value)]
    if len(rivals) < 2:
        return "no rival"
    if not any(isfinite(values[index]) for index in rivals):
        return "all infinite"
    return size_gap(*([shares[index] for index in rivals if shares] for shares in (removed, active)))


def size_gap(removed: Sequence[float], active: Sequence[float] = ()) -> str:
    """Return the range of the shares if models are of different sizes; "" if not. NaN: unknown."""
    for shares, what in ((removed, "removed"), (active, "active")):
        known = [share for share in shares if not isnan(share)]
        if known and max(known) - min(known) > ALIKE:
            return f"{min(known):.1%} to {max(known):.1%} {what}"
    return ""
