"""Error curves: each site as narrow as the model as a whole can best bear."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cfsp.allocators.base import Allocator, Budget, Probes, Scores
from cfsp.checks import check_choice, check_integer
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


@dataclass(frozen=True)
class Rung:
    """A width, and what the step down to it spares of the budget and adds to the error."""

    width: int
    spared: float
    added: float


COSTS = ("parameters", "macs", "latency")


@dataclass(frozen=True, kw_only=True)
class ErrorCurves(Allocator):
    """Widths that minimise the sum over sites of what the model's answers lose by each.

    A site's loss at a few widths is probed (`cfsp.schedules.probes`): KL(dense || cut) in nats per token,
    with the units and weights that the criterion and the compensation of the run would give it. Between
    the probes it follows the criterion's scores, and of this curve the convex hull counts: step by step
    goes what costs least per unit of budget, which for the hulls is optimal but for the last step, where
    ways to end are compared. A site with one unit, or one for each group, stays; with `allow_empty` it is
    tried without it.

    shares: of its units that a site keeps in the probes.
    batches: calibration batches that the probes read. Passes: sites x shares x batches, each from the
        site's block on; where statistics are missing, one more over all batches, and for each site one
        through its block alone.
    budget: what `sparsity` is a share of, of all that the sites' units take: "parameters", "macs" (in a
        pass over a calibration sample) or "latency" (seconds of a pass over a calibration batch, measured
        here and now).
    """

    shares: Sequence[float] = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2)
    batches: int = 4
    budget: str = "parameters"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares={[*self.shares]}: expected shares to keep, between 0 and 1")
        check_integer("batches", self.batches, least=1)
        check_choice("budget", self.budget, COSTS)

    @property
    def probes(self) -> Probes:
        return Probes(tuple(self.shares), self.batches, self.budget, self.allow_empty)

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        self.check(sites, budget)
        prices = {
            site.name: float(stats[site.name].get("unit_cost", budget.cost[site.name])) for site in sites
        }
        protected = self.protected_blocks(sites)
        ladders = {
            site.name: self.ladder(site, stats[site.name]["error_curve"], prices[site.name])
            for site in sites
            if site.block not in protected and len(stats[site.name]["error_curve"]) > 1
        }
        # A share of the parameters is met to the parameter, as the schedule rounded it.
        excess = (1 - budget.share) * sum(site.units * prices[site.name] for site in sites)
        rungs = descend_ladders(ladders, excess * (1 - 1e-12))
        kept = {name: ladders[name][rung].width for name, rung in rungs.items()}
        return {site.name: kept.get(site.name, site.units) for site in sites}

    def ladder(self, site: Site, curve: Tensor, price: float) -> list[Rung]:
        """The widths that the site can take, from all of its units down."""
        step, least = self.step(site), self.least_units(site)
        widths = np.array(sorted({site.units, *range(-(-least // step) * step, site.units, step)}))
        errors = hull(widths, np.interp(widths, *curve.numpy().T))
        spared = np.append(np.diff(widths) * price, 0.0)  # by the step down to this width; none to the first
        added = np.append(errors[:-1] - errors[1:], 0.0)
        rungs = [Rung(int(w), float(s), float(e)) for w, s, e in zip(widths, spared, added, strict=True)]
        return rungs[::-1]

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        return dict(self.allocate(sites, scores, stats, budget))


def descend_ladders(ladders: Mapping[str, Sequence[Rung]], excess: float) -> dict[str, int]:
    """The rung of every ladder: down by what costs least per budget, as long as the excess is not gone.

    A step that would do away with all that is left of it, a whole key/value group where some neurons would
    do, ends the descent in one way; in another its ladder goes no further and the others do. Of all these
    ends the one with the least error counts.

    Raises:
        ValueError: the ladders end before.
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
            f"the sites that may be cut cannot spare the last {excess:.4g} of it; expected a lower sparsity, "
            "a smaller round_to or fewer protected blocks"
        )
    return min(ends, key=lambda end: end[0])[1]


def climb(ladders: Mapping[str, Sequence[Rung]], rungs: dict[str, int], room: float) -> float:
    """Go up again, in place, wherever there is room for it. -> by how much the error falls"""
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
    """The largest convex curve that is nowhere above. [widths]"""
    corners: list[int] = []
    for place in range(len(widths)):
        while len(corners) > 1:
            (x, y), (u, v) = ((widths[corner], errors[corner]) for corner in corners[-2:])
            if (v - y) * (widths[place] - x) < (errors[place] - y) * (u - x):
                break
            corners.pop()
        corners.append(place)
    return np.interp(widths, widths[corners], errors[corners])
