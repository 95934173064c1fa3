"""One shot: one pass over the dense model decides everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.decide import make_cuts_of_each, score_sites
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
        cut = RememberedCuts(lambda tried: make_cuts_of_each(state, sites, scores, tried, stats, method))
        widths, notes = self.search(subject, batches, method, stats, widths, lambda _: Cutter(cut))
        cuts = cut({site.name: [widths[site.name]] for site in sites})
        return Planned(PrunePlan(tuple(made for (made,) in cuts.values()), notes_of(sites, stats) | notes))


class RememberedCuts:
    """Makes cuts from statistics that do not change, and remembers one of each site: to its present width.

    Most sites keep their widths from one trial to the next, and a refit factorises the site's moments.
    make: (site name -> widths) -> site name -> a cut per width
    """

    def __init__(self, make: Callable[[Mapping[str, Sequence[int]]], Mapping[str, Sequence[Cut]]]):
        self.make = make
        self.present: dict[str, Cut] = {}

    def __call__(self, widths: Mapping[str, Sequence[int]]) -> dict[str, list[Cut]]:
        """Return a cut for each of these widths, of which the first is the present one."""
        known = {name: {len(cut.keep): cut} for name, cut in self.present.items()}
        new = {name: [one for one in own if one not in known.get(name, {})] for name, own in widths.items()}
        for name, cuts in self.make(new).items():
            known[name] = known.get(name, {}) | {len(cut.keep): cut for cut in cuts}
        made = {name: [known[name][width] for width in own] for name, own in widths.items()}
        self.present = {name: cuts[0] for name, cuts in made.items()}
        return made
