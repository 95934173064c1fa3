"""Exchange units: try exchanges by the error of the whole model until none lowers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cfsp.allocators.block_exchanges import block_exchanges, block_neighbours
from cfsp.allocators.exchanges import (
    ErrorMeter,
    Exchange,
    Terms,
    Widths,
    best_exchanges,
    exchanged,
    neighbours,
)

FIRST, LAST = 1 / 8, 1 / 128
"""The largest and the smallest step, as a share of the mean price of a site."""

TRIALS = 4
"""Most exchanges of one round that are tried one by one after their sum was refused."""


@dataclass
class Found:
    """widths: the best. before, after: the error at the start and now; None if not measured.

    moves: for each accepted change, the sites' widths before and after it, and the error.
    """

    widths: dict[str, int]
    before: float | None
    after: float | None
    moves: list[dict[str, Any]] = field(default_factory=list)

    def take(self, widths: dict[str, int], error: float) -> None:
        changed = {
            name: [self.widths[name], width] for name, width in widths.items() if width != self.widths[name]
        }
        self.moves.append({"widths": changed, "error": error})
        self.widths, self.after = widths, error


def exchange_units(start: Widths, terms: Terms, measure: ErrorMeter, rounds: int) -> Found:
    """Exchange units between sites until no exchange lowers the error, or the rounds or passes are spent.

    A round measures every site one step narrower and one step wider, with all others as they are. The best
    exchanges, each site in at most one, are tried together, then half of them, and so on. What lowers
    the error is kept. Where nothing does, blocks are dropped for wider sites or other blocks, and where that
    helps no more, the step is halved.
    """
    found = Found(dict(start), before := measure.error(start), before)
    step = terms.step(FIRST) if terms.rungs else 0.0
    for _ in range(rounds if before is not None and terms.rungs else 0):
        near = neighbours(terms, found.widths, step) | block_neighbours(terms, found.widths)
        changes = measure.around(found.widths, near)
        if changes is None:
            break
        units = best_exchanges(terms, found.widths, changes, step)
        blocks = block_exchanges(terms, found.widths, changes, step)
        if not improve(found, terms, measure, units) and not try_each(found, terms, measure, blocks):
            step /= 2
        if step < terms.step(LAST):
            break
    return found


def improve(found: Found, terms: Terms, measure: ErrorMeter, exchanges: Sequence[Exchange]) -> bool:
    """Try the exchanges together, then the better half, and so on; then each alone. -> whether one helped"""
    together, count = [], len(exchanges)
    while count > 1:
        together.append(exchanges[:count])
        count //= 2
    return any(try_one(found, terms, measure, some) for some in together) or try_each(
        found, terms, measure, exchanges
    )


def try_each(found: Found, terms: Terms, measure: ErrorMeter, exchanges: Sequence[Exchange]) -> bool:
    """Try the best exchanges one by one. -> whether one helped"""
    return any(try_one(found, terms, measure, [one]) for one in exchanges[:TRIALS])


def try_one(found: Found, terms: Terms, measure: ErrorMeter, some: Sequence[Exchange]) -> bool:
    """Make these exchanges if that lowers the error. -> whether it did"""
    widths = exchanged(terms, found.widths, some)
    error = None if widths == found.widths else measure.error(widths)
    if error is None or (found.after is not None and error >= found.after):
        return False
    found.take(widths, error)
    return True
