"""Global rank: rank the units of all sites together and remove the worst."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from cfsp.allocators.base import Allocator, Budget, Scores
from cfsp.allocators.released_allocator import ReleasedAllocator
from cfsp.checks import check_number
from cfsp.machine.environment import is_main
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


@dataclass(frozen=True, kw_only=True)
class GlobalRank(Allocator):
    """Keeps the best units of all sites, as many as the budget allows.

    With the `flap` criterion this is FLAP's AL-AM (An et al. 2023, arXiv:2312.11983). FLAP counts a
    head as 512 / 3 neurons, which is right for one head size only; here a unit counts as its parameters.

    standardise: first standardise each site's scores by their own mean and standard deviation, for
        criteria whose scale differs between sites (`flap` does so already).
    """

    standardise: bool = False
    ranks: ClassVar[bool] = True

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        ranked = [self.comparable(scores[site.name]) for site in sites]
        owner = torch.cat([torch.full((site.units,), index) for index, site in enumerate(sites)])
        price = torch.tensor([budget.cost[site.name] for site in sites])[owner]
        order = torch.cat(ranked).argsort(descending=True, stable=True)
        counts, left = [0] * len(sites), budget.keep
        for site, unit_price in zip(owner[order].tolist(), price[order].tolist(), strict=True):
            if unit_price <= left:  # after a head that is too expensive, neurons may still fit
                counts[site] += 1
                left -= unit_price
        return {site.name: float(count) for site, count in zip(sites, counts, strict=True)}

    def comparable(self, score: Tensor) -> Tensor:
        """A site's scores as they stand beside those of others. [units] -> [units], float64"""
        score = score.double().cpu()
        if not self.standardise:
            return score
        spread = score.std(correction=0).clamp_min(torch.finfo(score.dtype).tiny)
        return (score - score.mean()) / spread


RELEASED_WEIGHT, RELEASED_CHANNELS = 170, 128


@dataclass(frozen=True, kw_only=True)
class GlobalRankReleased(ReleasedAllocator):
    """FLAP's released AL-AM (An et al. 2023, arXiv:2312.11983), for comparison; it may miss the budget.

    A neuron weighs 1 and a head or group `head_weight`. Units are sorted by falling score; the threshold
    is the score at which the cumulative weight is closest to (1 - p) of the total. Units above it are kept.

    head_weight: 170 is the release's 512 / 3 (four matrices of 128 rows against three) truncated to an
        integer; right for heads of 128 channels without grouping only. For others a warning on stderr
        gives the right value.

    Differs from the released code: a site keeps at least one unit (there: a crash), and within a site
    units are chosen by exact top-k.
    """

    head_weight: float = RELEASED_WEIGHT
    ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("head_weight", self.head_weight, least=0, most=torch.finfo().max)

    def check(self, sites: Sequence[Site], budget: Budget) -> None:
        """Raise ValueError for kinds other than mlp and attention; warn about an unfit `head_weight`."""
        super().check(sites, budget)
        for site in sites:
            if not (site.units_are_neurons or site.units_are_whole_heads):
                raise ValueError(
                    f"allocator GlobalRankReleased knows mlp and attention; leave {site.kind!r} out of sites"
                )
        for channels in {channels_of_a_head(site) for site in sites if site.units_are_whole_heads}:
            if self.head_weight == RELEASED_WEIGHT and channels != RELEASED_CHANNELS:
                tell_of_heads(channels)

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        self.check(sites, budget)
        protected = self.protected_sites(sites)
        score = torch.cat([scores[site.name].double() for site in sites])
        weights = [1.0 if site.units_are_neurons else self.head_weight for site in sites]
        units = torch.tensor([site.units for site in sites])
        weight = torch.tensor(weights, dtype=torch.float64).repeat_interleave(units)
        order = score.argsort(descending=True, stable=True)
        so_far = weight[order].cumsum(0)
        threshold = score[order[(so_far - budget.share * so_far[-1]).abs().argmin()]]
        if budget.share == 1:
            return {site.name: site.units for site in sites}
        return {
            site.name: site.units
            if site.name in protected
            else max(int((scores[site.name].double() > threshold).sum()), 1)
            for site in sites
        }


def channels_of_a_head(site: Site) -> int:
    """Return the channels of one head: the span of keys and values, which have one head per group."""
    return min(member.span for member in site.members)


@lru_cache
def tell_of_heads(channels: int) -> None:
    """Warn on stderr, once per head size, that the release's weight is for another size."""
    fitting = 512 / 3 * channels / RELEASED_CHANNELS
    if is_main():
        print(
            f"cfsp: head_weight={RELEASED_WEIGHT} is for heads of {RELEASED_CHANNELS} channels; for those of "
            f"{channels} it would be allocator.head_weight={fitting:.6g}",
            file=sys.stderr,
        )
