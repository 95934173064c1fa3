"""One shot: one pass over the dense model decides everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.decide import make_cuts, make_cuts_of_each, score_sites
from cfsp.schedules.joint import Cutter
from cfsp.schedules.method import Method
from cfsp.schedules.notes import notes_of
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.probes import add_probes


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """Measures the dense model once, then scores the units, sets the widths and takes the exact top-k."""

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        batches, sites = list(batches), subject.sites
        state = PartlyCut(subject.model, sites)
        stats = self.collect(subject, state, sites, batches, method.needs)
        scores = score_sites(state, sites, stats, method.criterion)
        add_probes(stats, subject, batches, method)
        widths = self.allocate(state, scores, stats, method)

        def cut(tried: Mapping[str, Sequence[int]]) -> dict[str, list[Cut]]:
            return make_cuts_of_each(state, sites, scores, tried, stats, method)

        widths, notes = self.search(subject, batches, method, stats, widths, lambda _: Cutter(cut))
        cuts = make_cuts(state, sites, scores, widths, stats, method)
        return Planned(PrunePlan(tuple(cuts), notes_of(sites, stats) | notes))
