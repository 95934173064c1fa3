"""A covering choice out of a product that is too large to run whole each time."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Choose rows of a product such that any two values of two axes meet in one of them, greedily."""
    rows = {row: {*combinations(enumerate(row), 2)} for row in product(*axes)}
    missing = set().union(*rows.values())
    chosen = []
    while missing:
        row = max(rows, key=lambda row: len(rows[row] & missing))
        missing -= rows.pop(row)
        chosen.append(row)
    return chosen


def marked_product(*axes: Sequence[Any]) -> list[Any]:
    """The whole product as test cases; those that a pairwise covering leaves out are marked `product`."""
    covering = {*pairwise(*axes)}
    return [
        pytest.param(*row, marks=[] if row in covering else pytest.mark.product) for row in product(*axes)
    ]
