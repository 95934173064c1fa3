"""Iterative: prune in steps, and look at what is left before each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.model.sites import Site
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.schedules.base import Schedule, notes_of
from cfsp.schedules.decide import allocate, make_cuts, score_sites
from cfsp.schedules.partial import Progress
from cfsp.storage.cache import OFF, Cache


@dataclass(frozen=True, kw_only=True)
class Iterative(Schedule):
    """`steps` times one shot, each removing an equal share of the parameters from what is left.

    Between the steps the cuts are held as gates, with their fills, and there is one surgery at the
    end: the plan is the one that as many runs with as many surgeries would come to.

    The allocator splits each step over the sites as they are by then. One that goes by the block's
    importance (`cfsp`) therefore differs more between blocks the more steps there are.

    Its iterations are those of LLM-Pruner (Ma et al. 2023, arXiv:2305.11627).
    """

    steps: int = 4
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("steps", self.steps, least=1)

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
        batches = list(batches)  # read once per step
        removed = self.removed(model, sites)
        dense = round(Progress(model, sites).parameters())
        needs = criterion.needs | allocator.needs | compensation.needs
        cuts: dict[str, Cut] = {}
        notes = {}
        for step in bar(range(1, self.steps + 1), "prune in steps", "step"):
            state = Progress(model, sites, cuts.values())
            left = [site for site in state.sites if site.units]
            stats = self.collect(state, left, batches, needs, cache=cache)
            parts = (criterion, allocator, compensation)
            notes = notes or notes_of(sites, stats)
            scores = score_sites(state, left, stats, criterion)
            due = removed * step // self.steps - (dense - round(state.parameters()))
            widths = allocate(state, left, scores, stats, allocator, due)
            made = make_cuts(state, left, scores, widths, stats, parts)
            cuts |= {cut.site: cut for cut in made}
        return PrunePlan(tuple(cuts.values()), notes)
