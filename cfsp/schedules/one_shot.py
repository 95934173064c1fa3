"""One shot: one pass over the dense model decides everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.plans import PrunePlan
from cfsp.schedules.base import Schedule, block_statistics, collect_if_needed, make_cut, score_sites
from cfsp.sites import Site, unit_cost


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """Statistics of the dense model, scores, widths, exact top-k."""

    def plan(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        criterion: Criterion,
        allocator: Allocator,
        compensation: Compensation,
    ) -> PrunePlan:
        budget = self.budget(model, sites)
        needs = criterion.needs | allocator.needs | compensation.needs
        stats = collect_if_needed(model, sites, batches, needs)
        scores = score_sites(model, sites, stats, criterion)
        cost = {site.name: unit_cost(model, site) for site in sites}
        widths = allocator.allocate(sites, scores, stats, cost, budget)
        edits = [
            make_cut(site, scores[site.name], widths[site.name], stats[site.name], compensation)
            for site in sites
        ]
        return PrunePlan(tuple(edits), {"block_statistics": block_statistics(sites, stats)})
