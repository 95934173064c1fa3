"""Ladders: the steps by which sites and blocks become smaller, from the cheapest down."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def descend_ladders(ladders: Mapping[str, Sequence[Rung]], excess: float) -> dict[str, int]:
    """Return the rung of every ladder after the steps that cost the least error per budget save `excess`.

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
    return min(ends, key=lambda end: end[0])[1]


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
