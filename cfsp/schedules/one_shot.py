"""One shot: one pass over the dense model decides everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.model.sites import Site
from cfsp.plans.plan import PrunePlan
from cfsp.schedules.base import Schedule, notes_of
from cfsp.schedules.decide import allocate, make_cuts, score_sites
from cfsp.schedules.partial import Progress
from cfsp.storage.cache import OFF, Cache


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
        cache: Cache = OFF,
    ) -> PrunePlan:
        self.check(sites, criterion, allocator, compensation)
        batches = list(batches)
        state = Progress(model, sites)
        needs = criterion.needs | allocator.needs | compensation.needs
        stats = self.collect(state, sites, batches, needs, cache=cache)
        scores = score_sites(state, sites, stats, criterion)
        parts = (criterion, allocator, compensation)
        self.probe(state, sites, batches, parts, stats, cache)
        widths = allocate(state, sites, scores, stats, allocator, self.removed(model, sites))
        cuts = make_cuts(state, sites, scores, widths, stats, parts)
        return PrunePlan(tuple(cuts), notes_of(sites, stats))
