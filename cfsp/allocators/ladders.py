"""Ladders: the steps by which sites and blocks become smaller, from the cheapest down."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Rung:
    """Widths by site, and what the step down to them saves of the budget and adds to the error."""

    widths: Mapping[str, int]
    spared: float
    added: float


def join_ladders(ladders: Sequence[Sequence[Rung]], whole: float) -> list[Rung]:
    """Return one ladder of a block: its sites' steps, in the order of their prices.

    whole: the error of the model without the block. The last step takes the whole block, and replaces the
    steps that cost more error for what they save of the budget.
    """
    ranked: list[tuple[float, Rung]] = []
    for ladder in ladders:
        steepest = -np.inf
        for rung in ladder[1:]:  # rounding must not change the order of a site's own steps
            steepest = max(steepest, rung.added / rung.spared)
            ranked.append((steepest, rung))
    steps = [rung for _, rung in sorted(ranked, key=lambda step: step[0])]
    top = {name: width for ladder in ladders for name, width in ladder[0].widths.items()}
    saved, left = 0.0, whole - sum(rung.added for rung in steps)
    while steps and (saved <= 0 or left / saved <= steps[-1].added / steps[-1].spared):
        last = steps.pop()
        saved, left = saved + last.spared, left + last.added
    return [Rung(top, 0.0, 0.0), *steps, Rung(dict.fromkeys(top, 0), saved, left)]


def widths_at(ladder: Sequence[Rung], rung: int) -> dict[str, int]:
    """Return the widths of a ladder's sites after the steps down to this rung."""
    return {name: width for one in ladder[: rung + 1] for name, width in one.widths.items()}


def descend_with_blocks(
    ladders: Mapping[str, Sequence[Rung]],
    blocks: Mapping[str, Sequence[str]],
    whole: Mapping[str, float],
    excess: float,
) -> dict[str, int]:
    """Return the widths that save `excess` at the least error, where blocks may go as a whole.

    ladders: by site. blocks: block -> its sites. whole: block -> the error of the model without it.

    A step that takes a whole block may save far too much at the end, so it only says which blocks go, and
    the other sites save the rest in their own steps. A few choices of blocks around the first are compared.
    """
    ladders, cheap = charged(ladders, blocks, whole)
    joined = {block: join_ladders([ladders[name] for name in blocks[block]], whole[block]) for block in cheap}
    pooled = {name for block in cheap for name in blocks[block]}
    single = {name: ladder for name, ladder in ladders.items() if name not in pooled}
    rungs, _ = descend_ladders(joined | single, excess)
    order = sorted(cheap, key=lambda block: joined[block][-1].added / joined[block][-1].spared)
    went = [block for block in order if rungs[block] == len(joined[block]) - 1]
    ends = []
    for gone in choices_near(went, order, blocks, ladders, excess) if cheap else ():
        empty = [name for block in gone for name in blocks[block]]
        others = {name: ladder for name, ladder in ladders.items() if name not in empty}
        found, error = descend_ladders(others, excess - spared_by(empty, ladders))
        error += sum(whole[block] for block in gone)
        ends.append((error, found | {name: len(ladders[name]) - 1 for name in empty}))
    best = min(ends, key=lambda end: end[0])[1] if ends else rungs
    widths: dict[str, int] = {}
    for name, rung in best.items():
        widths |= widths_at(ladders[name], rung)
    return widths


def choices_near(
    went: list[str],
    order: Sequence[str],
    blocks: Mapping[str, Sequence[str]],
    ladders: Mapping[str, Sequence[Rung]],
    excess: float,
) -> list[list[str]]:
    """Return choices of blocks near those that went, by their prices, none of which saves too much.

    They are the same and one more, and these without the dearest.
    """

    def fits(gone: list[str]) -> bool:
        empty = [name for block in gone for name in blocks[block]]
        room = spared_by(empty, ladders) - excess
        return all(ladders[name][-1].spared > room for name in empty)  # no unit could come back

    found = []
    for near in (went, went[:-1]):
        tried = [near, *([*near, block] for block in order if block not in went)]
        found += [gone for gone in tried if fits(gone)][:2]
    return found


def spared_by(empty: Sequence[str], ladders: Mapping[str, Sequence[Rung]]) -> float:
    """Return what it saves to empty these sites."""
    return sum(rung.spared for name in empty for rung in ladders[name])


def charged(
    ladders: Mapping[str, Sequence[Rung]], blocks: Mapping[str, Sequence[str]], whole: Mapping[str, float]
) -> tuple[dict[str, Sequence[Rung]], list[str]]:
    """Return the ladders, and the blocks that cost less as a whole than their sites do together.

    What another block costs beyond its sites is added to the dearest of the steps that empty them.
    """
    made, cheap = {**ladders}, []
    for block, names in blocks.items():
        surplus = whole[block] - sum(rung.added for name in names for rung in ladders[name])
        if surplus < 0:
            cheap.append(block)
            continue
        last = max(names, key=lambda name: ladders[name][-1].added / ladders[name][-1].spared)
        step = ladders[last][-1]
        made[last] = [*ladders[last][:-1], replace(step, added=step.added + surplus)]
    return made, cheap


def descend_ladders(ladders: Mapping[str, Sequence[Rung]], excess: float) -> tuple[dict[str, int], float]:
    """Return the rung of every ladder after the steps that cost the least error per budget save `excess`.

    The second value is the sum of their errors.

    A step that saves more than is left to save (a key/value group where a few neurons would do) is one
    way to end; the search also goes on without this ladder. The end with the least error is returned.

    Raises:
        ValueError: the ladders cannot save so much.
    """
    rungs, error = dict.fromkeys(ladders, 0), 0.0

    def below(name: str) -> list[tuple[float, str]]:
        down = ladders[name][rungs[name] + 1 : rungs[name] + 2]
        return [(rung.added / rung.spared, name) for rung in down]

    queue = [entry for name in ladders for entry in below(name)]
    heapq.heapify(queue)
    ends: list[tuple[float, dict[str, int]]] = [] if excess > 0 else [(error, rungs)]
    while queue and excess > 0:
        _, name = heapq.heappop(queue)
        rung = ladders[name][rungs[name] + 1]
        if rung.spared >= excess:
            end = rungs | {name: rungs[name] + 1}
            ends.append((error + rung.added - climb(ladders, end, rung.spared - excess), end))
            continue
        rungs[name] += 1
        excess, error = excess - rung.spared, error + rung.added
        for entry in below(name):
            heapq.heappush(queue, entry)
    if not ends:
        raise ValueError(
            f"the sites that may be cut cannot save the last {excess:.4g} that the sparsity asks for; "
            "expected a lower sparsity, a smaller round_to or fewer protected blocks"
        )
    error, rungs = min(ends, key=lambda end: end[0])
    return rungs, error


def climb(ladders: Mapping[str, Sequence[Rung]], rungs: dict[str, int], room: float) -> float:
    """Step up again, in place, while `room` allows it. -> by how much the error falls"""
    fallen = 0.0
    while True:
        here = {name: ladders[name][rung] for name, rung in rungs.items() if rung}
        fits = [name for name, rung in here.items() if rung.spared <= room]
        if not fits:
            return fallen
        best = max(fits, key=lambda name: here[name].added)
        rungs[best] -= 1
        room, fallen = room - here[best].spared, fallen + here[best].added


def hull(widths: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the largest convex curve that is nowhere above `errors`. [widths]"""
    corners: list[int] = []
    for place in range(len(widths)):
        while len(corners) > 1:
            (x, y), (u, v) = ((widths[corner], errors[corner]) for corner in corners[-2:])
            if (v - y) * (widths[place] - x) < (errors[place] - y) * (u - x):
                break
            corners.pop()
        corners.append(place)
    return np.interp(widths, widths[corners], errors[corners])
