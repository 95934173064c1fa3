"""Uniform: every site loses the same share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfsp.allocators.base import Allocator, Scores
from cfsp.sites import Site
from cfsp.statistics import Stats


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocator):
    """keep_s = units_s x budget / cost of all units"""

    def wishes(
        self,
        sites: Sequence[Site],
        scores: Scores,
        stats: Stats,
        cost: Mapping[str, int],
        budget: int,
    ) -> dict[str, float]:
        share = budget / sum(site.units * cost[site.name] for site in sites)
        return {site.name: site.units * share for site in sites}
