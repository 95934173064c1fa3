"""Exchanges: some sites become narrower and others wider, at an equal price, as long as the error falls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from cfsp.allocators.compared_answers import ComparedAnswers

Widths = Mapping[str, int]
"""Site name -> units kept."""


@dataclass(frozen=True)
class Terms:
    """What widths may be and cost.

    rungs: site name -> the widths that it may take, ascending. A site without rungs keeps its width.
    prices: site name -> price of a unit. limit: the most that all sites may cost.
    blocks: path of a block that may go as a whole -> its sites.
    """

    rungs: Mapping[str, Sequence[int]]
    prices: Mapping[str, float]
    limit: float
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def price(self, widths: Widths) -> float:
        return sum(width * self.prices[name] for name, width in widths.items())

    def step(self, share: float) -> float:
        """Return the price of this share of a mean site."""
        return (
            share * sum(rungs[-1] * self.prices[name] for name, rungs in self.rungs.items()) / len(self.rungs)
        )

    def changed(self, name: str, width: int) -> dict[str, int]:
        """Return the new widths by site if a site takes this width, or a block goes (0) or comes back (1)."""
        if name in self.rungs:
            return {name: width}
        return {site: self.rungs[site][-1] if width else 0 for site in self.blocks[name]}

    def narrower(self, name: str, width: int, price: float) -> int | None:
        """Return the rung below `width` that is nearest to `price` less; None if there is none below."""
        below = [rung for rung in self.rungs[name] if rung < width]
        wanted = width - price / self.prices[name]
        return min(below, key=lambda rung: (abs(rung - wanted), -rung), default=None)

    def wider(self, name: str, width: int, price: float) -> int | None:
        """Return the rung above `width` that is nearest to `price` more; None if there is none above."""
        above = [rung for rung in self.rungs[name] if rung > width]
        wanted = width + price / self.prices[name]
        return min(above, key=lambda rung: (abs(rung - wanted), rung), default=None)

    def within(self, name: str, width: int, room: float) -> int:
        """Return the widest rung that costs at most `room` more than `width`."""
        most = width + (room + 1e-9 * self.limit) / self.prices[name]
        return max((rung for rung in self.rungs[name] if width <= rung <= most), default=width)

    def filled(self, widths: Widths, order: Sequence[str]) -> dict[str, int]:
        """Return the widths after these sites, in this order, took what the limit leaves."""
        full = dict(widths)
        for name in order:
            full[name] = self.within(name, full[name], self.limit - self.price(full))
        return full


@dataclass(frozen=True)
class Search:
    """A joint search that an allocator asks for (`cfsp.schedules.joint`).

    rounds: most rounds. passes: most passes over the calibration. batches: of the calibration, to measure on.
    compared: what of the answers is compared.
    """

    terms: Terms
    rounds: int
    passes: float
    batches: int
    compared: ComparedAnswers = field(default_factory=ComparedAnswers)

    def staying(self, names: Collection[str]) -> Search:
        """Return the search in which these sites keep their widths."""
        rungs = {name: rungs for name, rungs in self.terms.rungs.items() if name not in names}
        blocks = {block: own for block, own in self.terms.blocks.items() if {*own} <= rungs.keys()}
        return replace(self, terms=replace(self.terms, rungs=rungs, blocks=blocks))


class ErrorMeter(Protocol):
    """Measures the error of the model, KL(dense || cut), until its passes are spent (then None)."""

    def error(self, widths: Widths) -> float | None:
        """Return the error at these widths."""

    def around(
        self, widths: Widths, other: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, float]] | None:
        """Return by how much the error changes if one site alone takes another width, for all in `other`."""


@dataclass(frozen=True)
class Exchange:
    """narrower, wider: site name -> new width. expected: change of the error, if the sites' add up."""

    narrower: Widths
    wider: Widths
    expected: float

    @property
    def sites(self) -> set[str]:
        return {*self.narrower, *self.wider}


def neighbours(terms: Terms, widths: Widths, step: float) -> dict[str, list[int]]:
    """Return each site's widths one step away, and none at all where that may be."""
    others = {}
    for name, rungs in terms.rungs.items():
        near = {terms.narrower(name, widths[name], step), terms.wider(name, widths[name], step)}
        if rungs[0] == 0 < widths[name]:
            near.add(0)
        others[name] = sorted(width for width in near if width is not None)
    return others


def best_exchanges(
    terms: Terms, widths: Widths, changes: Mapping[str, Mapping[int, float]], step: float
) -> list[Exchange]:
    """Return exchanges that should lower the error, the best first; each site is in at most one."""
    changes = {name: own for name, own in changes.items() if name in terms.rungs}
    possible = [one for name in changes for one in exchanges_of(name, terms, widths, changes, step)]
    chosen: list[Exchange] = []
    for one in sorted(possible, key=lambda one: one.expected):
        if one.expected < 0 and not one.sites & set(chain.from_iterable(other.sites for other in chosen)):
            chosen.append(one)
    return chosen


def exchanges_of(
    name: str, terms: Terms, widths: Widths, changes: Mapping[str, Mapping[int, float]], step: float
) -> list[Exchange]:
    """Return exchanges of one narrower site: with each other site, and with several where it frees much."""
    spare = terms.limit - terms.price(widths)
    made = []
    for other in (one for one in changes if one != name):  # a set has no order
        wide = terms.wider(other, widths[other], step)
        if wide is not None and (narrow := paying(name, terms, widths, other, wide, spare)) is not None:
            room = spare + (widths[name] - narrow) * terms.prices[name]
            made.append(({name: narrow}, {other: terms.within(other, widths[other], room)}))
    if changes[name].get(0) is not None:
        room = spare + widths[name] * terms.prices[name]
        made.append(({name: 0}, shared_out(room, name, terms, widths, changes, step)))
    return [
        Exchange(narrower, wider, expected(narrower | wider, widths, changes))
        for narrower, wider in made
        if wider
    ]


def paying(name: str, terms: Terms, widths: Widths, other: str, wide: int, spare: float) -> int | None:
    """Return the widest rung of a site that pays for another's rung `wide`; None if there is none."""
    due = (wide - widths[other]) * terms.prices[other] - spare
    most = widths[name] - (due - 1e-9 * terms.limit) / terms.prices[name]
    return max((rung for rung in terms.rungs[name] if rung <= most and rung < widths[name]), default=None)


def shared_out(
    room: float,
    name: str,
    terms: Terms,
    widths: Widths,
    changes: Mapping[str, Mapping[int, float]],
    step: float,
) -> dict[str, int]:
    """Give the room to the other sites, two steps to each, first to those that gain most by their price."""
    gains = {}
    for other in (one for one in changes if one != name):
        above = [width for width in changes[other] if width > widths[other]]
        if above:
            cost = (above[0] - widths[other]) * terms.prices[other]
            gains[other] = changes[other][above[0]] / cost
    wider = {}
    for other in sorted(gains, key=lambda other: (gains[other], other)):
        width = terms.within(other, widths[other], min(room, 2 * step))
        if width > widths[other]:
            wider[other] = width
            room -= (width - widths[other]) * terms.prices[other]
    return wider


def expected(new: Widths, widths: Widths, changes: Mapping[str, Mapping[int, float]]) -> float:
    """Return the sum of the changes of the error, each in proportion to that of the nearest width."""
    total = 0.0
    for name, width in new.items():
        way = width - widths[name]
        if way:
            points = [point for point in changes[name] if (point > widths[name]) == (way > 0)]
            near = min(points, key=lambda point: abs(point - width))
            total += changes[name][near] * way / (near - widths[name])
    return total


def exchanged(terms: Terms, widths: Widths, exchanges: Sequence[Exchange]) -> dict[str, int]:
    """Return the widths after these exchanges. What the limit leaves goes to their wider sites first."""
    new = dict(widths)
    for one in exchanges:
        new |= one.narrower
    wider = {name: width for one in exchanges for name, width in one.wider.items()}
    for name, width in wider.items():
        new[name] = min(width, terms.within(name, new[name], terms.limit - terms.price(new)))
    return terms.filled(new, [*wider, *(name for name in terms.rungs if name not in wider and new[name])])
