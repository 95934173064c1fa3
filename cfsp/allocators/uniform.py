"""Uniform: every site loses the same share, together to the parameter or, as released, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cfsp.allocators.base import Allocator, Budget, ReleasedAllocator, Scores
from cfsp.checks import check_choice
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """keep_s = units_s x budget / cost of all units"""

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        return {site.name: site.units * budget.share for site in sites}


@dataclass(frozen=True, kw_only=True)
class UniformReleased(ReleasedAllocator):
    """Every site by itself loses the asked share p of its units, rounded; it may miss the budget.

    remove = floor(p units); of an MLP with `neurons: up`, ceil(p units), as units - int(units (1 - p))
    of LLM-Pruner's released code comes out. Protected blocks lose nothing and nobody makes up for them.
    Differs from the released codes, those of FLAP's and CFSP's baselines and of LLM-Pruner: at least one
    unit stays, and units are chosen by exact top-k, so ties do not add to what is kept.
    """

    neurons: str = "down"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("neurons", self.neurons, ("down", "up"))

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        share = 1 - budget.share
        protected = self.protected_blocks(sites)
        keep = {}
        for site in sites:
            runs = site.units // site.groups
            exact, slack = share * runs, runs / budget.total  # the budget is a whole number of parameters
            up = self.neurons == "up" and site.units_are_neurons
            removed = math.ceil(exact - slack) if up else math.floor(exact + slack)
            kept = max(runs - removed, 1) * site.groups
            keep[site.name] = site.units if site.block in protected else kept
        return keep
