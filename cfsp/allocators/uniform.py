"""Uniform: every site loses the same fraction, under one budget or, as released, each on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cfsp.allocators.base import Allocator, Budget, Scores
from cfsp.allocators.released_allocator import ReleasedAllocator
from cfsp.checks import check_choice
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """keep_s = units_s x budget / cost of all units"""

    even: ClassVar[bool] = True

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        return {site.name: site.units * budget.share for site in sites}


@dataclass(frozen=True, kw_only=True)
class UniformReleased(ReleasedAllocator):
    """Removes the fraction p of every site's units, rounded per site; it may miss the budget.

    remove = floor(p units); of an MLP with `neurons: up`, ceil(p units), which equals
    units - int(units (1 - p)) in LLM-Pruner's released code. Protected blocks lose nothing, and the
    others do not make up for them.

    Differs from the released code (the baselines of FLAP and CFSP, and LLM-Pruner): at least one unit
    is kept, and units are chosen by exact top-k, so ties do not keep more.
    """

    even: ClassVar[bool] = True

    neurons: str = "down"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("neurons", self.neurons, ("down", "up"))

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        share = 1 - budget.share
        protected = self.protected_sites(sites)
        keep = {}
        for site in sites:
            runs = site.units // site.groups
            exact, slack = share * runs, runs / budget.total  # of the budget's rounding to whole parameters
            up = self.neurons == "up" and site.units_are_neurons
            removed = math.ceil(exact - slack) if up else math.floor(exact + slack)
            kept = max(runs - removed, 1) * site.groups
            keep[site.name] = site.units if site.name in protected else kept
        return keep
