"""Block exchanges: a block goes as a whole, and other sites become wider or another block comes back.

Scores of single blocks choose bad layers together, so both are judged by the model that is cut everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cfsp.allocators.exchanges import Exchange, Terms, Widths, expected, shared_out


def block_neighbours(terms: Terms, widths: Widths) -> dict[str, list[int]]:
    """Return for each block that may go: 0, to measure the model without it; 1 if it is gone already."""
    there = {block: [name for name in names if widths[name]] for block, names in terms.blocks.items()}
    return {block: [0 if left else 1] for block, left in there.items() if len(left) != 1}


def block_exchanges(
    terms: Terms, widths: Widths, changes: Mapping[str, Mapping[int, float]], step: float
) -> list[Exchange]:
    """Return exchanges of whole blocks that should lower the error, the best first."""
    sites = {name: own for name, own in changes.items() if name in terms.rungs}
    found = []
    for block, names in terms.blocks.items():
        gone = changes.get(block, {}).get(0)
        if gone is None:
            continue
        narrower = dict.fromkeys(names, 0)
        room = terms.limit - terms.price({**widths, **narrower})
        others = {name: own for name, own in sites.items() if name not in names}
        wider = shared_out(room, block, terms, widths, others, step)
        found.append(Exchange(narrower, wider, gone + expected(wider, widths, others)))
        for back, gain in coming_back(terms, changes, room):
            found.append(Exchange(narrower, back, gone + gain))
    return sorted((one for one in found if one.wider and one.expected < 0), key=lambda one: one.expected)


def coming_back(
    terms: Terms, changes: Mapping[str, Mapping[int, float]], room: float
) -> Iterator[tuple[dict[str, int], float]]:
    """Yield for each dropped block the widths that the room pays for, and the change of the error."""
    for block, names in terms.blocks.items():
        whole = changes.get(block, {}).get(1)
        if whole is not None:
            widths = first_come(terms, names, room)
            full = terms.price({name: terms.rungs[name][-1] for name in names})
            yield widths, whole * terms.price(widths) / full


def first_come(terms: Terms, names: Sequence[str], room: float) -> dict[str, int]:
    """Return the widths of these sites, each as wide as the room still allows."""
    widths = {}
    for name in names:
        widths[name] = terms.within(name, 0, room)
        room -= widths[name] * terms.prices[name]
    return {name: width for name, width in widths.items() if width}
