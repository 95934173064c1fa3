"""Global rank: all units of all sites in one list, the worst go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfsp.allocators.base import Allocator, Scores
from cfsp.checks import check_bool
from cfsp.sites import Site
from cfsp.statistics import Stats


@dataclass(frozen=True, kw_only=True)
class GlobalRank(Allocator):
    """Keep the best units of all sites, as many as the budget has room for.

    With the `flap` criterion this is FLAP's AL-AM (An et al. 2023, arXiv:2312.11983), whose weight
    of a head, 512 / 3 neurons, is right for one head size only; here a unit weighs what its
    parameters are.

    standardise: take every site's scores relative to their own mean and standard deviation first,
        for criteria whose scale differs between sites (`flap` has done it already).
    """

    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("standardise", self.standardise)

    def wishes(
        self,
        sites: Sequence[Site],
        scores: Scores,
        stats: Stats,
        cost: Mapping[str, int],
        budget: int,
    ) -> dict[str, float]:
        ranked = [self.comparable(scores[site.name]) for site in sites]
        owner = torch.cat([torch.full((site.units,), index) for index, site in enumerate(sites)])
        price = torch.tensor([cost[site.name] for site in sites])[owner]
        order = torch.cat(ranked).argsort(descending=True, stable=True)
        counts = [0] * len(sites)
        for site, unit_price in zip(owner[order].tolist(), price[order].tolist(), strict=True):
            if unit_price <= budget:  # a head that is too dear leaves room for neurons further down
                counts[site] += 1
                budget -= unit_price
        return {site.name: float(count) for site, count in zip(sites, counts, strict=True)}

    def comparable(self, score: Tensor) -> Tensor:
        score = score.double().cpu()
        if not self.standardise:
            return score
        spread = score.std(correction=0).clamp_min(torch.finfo(score.dtype).tiny)
        return (score - score.mean()) / spread
