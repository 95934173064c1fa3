"""One shot: one pass over the dense model decides everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.plans import Cut, PrunePlan
from cfsp.schedules.base import Schedule, best_units
from cfsp.sites import Site, UnitView, unit_cost
from cfsp.statistics import Stats, collect


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
        stats = collect(model, sites, batches, needs) if needs else {site.name: {} for site in sites}
        scores = {site.name: criterion.score(UnitView(model, site), stats[site.name]) for site in sites}
        for name, score in scores.items():
            if not score.isfinite().all():
                raise ValueError(f"{name}: a score is NaN or infinite; expected finite weights")
        cost = {site.name: unit_cost(model, site) for site in sites}
        widths = allocator.allocate(sites, scores, stats, cost, budget)
        edits = []
        for site in sites:
            keep = best_units(scores[site.name], widths[site.name])
            fill = compensation.fill(stats[site.name]) if len(keep) < site.units else None
            edits.append(Cut(site.name, site.units, keep, fill))
        return PrunePlan(tuple(edits), {"block_statistics": block_statistics(sites, stats)})


def block_statistics(sites: Sequence[Site], stats: Stats) -> dict[str, list[float]]:
    """The per-block statistics as lists over blocks, for people to look at."""
    first_of_block = {site.block: site for site in reversed(sites)}
    columns: dict[str, list[float]] = {}
    for block in sorted(first_of_block):
        for name, value in stats[first_of_block[block].name].items():
            if value.dim() == 0:
                columns.setdefault(name, []).append(float(value))
    return columns
