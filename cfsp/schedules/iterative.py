"""Iterative: prune in steps, and measure the remaining model before each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.decide import make_cuts, score_sites
from cfsp.schedules.method import Method
from cfsp.schedules.notes import notes_of
from cfsp.schedules.partly_cut import PartlyCut


@dataclass(frozen=True, kw_only=True)
class Iterative(Schedule):
    """Repeats one shot `steps` times. Each step removes the same number of parameters (of a target: the same
    share of the way to it).

    Between the steps, gates with fills stand for the cuts. One surgery at the end applies all of them.
    The plan equals that of as many runs with a surgery each.

    The allocator splits each step over the sites that are left. An allocator that uses the importance of
    blocks (`cfsp`) therefore differs more between blocks with more steps.

    Source of the iterations: LLM-Pruner (Ma et al. 2023, arXiv:2305.11627).
    """

    steps: int = 4
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("steps", self.steps, least=1)

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        model, sites = subject.model, subject.sites
        batches = list(batches)  # read once per step
        cuts: dict[str, Cut] = {}
        notes = {}
        for step in bar(range(1, self.steps + 1), "prune in steps", "step"):
            state = PartlyCut(model, sites, cuts.values())
            left = [site for site in state.sites if site.units]
            stats = self.collect(subject, state, left, batches, method.needs)
            notes = notes or notes_of(sites, stats)
            scores = score_sites(state, left, stats, method.criterion)
            widths = self.allocate(state, scores, stats, method, Fraction(step, self.steps))
            made = make_cuts(state, left, scores, widths, stats, method)
            cuts |= {cut.site: cut for cut in made}
        return Planned(PrunePlan(tuple(cuts.values()), notes))
