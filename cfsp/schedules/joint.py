"""Joint search: exchange units between sites by the error of the model that is cut everywhere.

Error curves measure each site alone. Here all other sites are cut as they are at present, so that two sites
that can each be spared, but not both, are told from two that can both go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfsp.allocators.exchanges import Search, Widths, exchange
from cfsp.bars import Work, task
from cfsp.passes.hidden_states import Store, storing
from cfsp.passes.modes import evaluating
from cfsp.passes.walk import walking
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.decide import make_cuts, overlap, score_sites
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.probes import divergence, log_probabilities
from cfsp.statistics.base import Stats
from cfsp.statistics.cached import origin_of_statistics
from cfsp.storage.atomic import write_json
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest


def search_once(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    stats: Stats,
    start: Widths,
    search: Search,
    place: str = "memory",
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the widths that a joint search finds from `start`, and notes on it, from the cache if they are there.

    stats: of the dense model, all that the criterion and the compensation need.
    """
    if overlap(subject.sites):
        raise ValueError("rounds: a joint search needs sites that share no weights; expected rounds=0")
    parts, cache = (method.criterion, method.compensation), subject.cache
    code = code_of(search_jointly, *map(type, (*parts, method.allocator)))
    if cache.folder is None or code is None:
        found = search_jointly(subject, batches, method, stats, start, search, place)
        return found["widths"], found["notes"]
    tried = {
        "start": dict(start),
        "search": asdict(search),
        "parts": [[type(part).__qualname__, repr(vars(part))] for part in parts],
        "code": code,
    }
    folder = f"statistics/{digest([origin_of_statistics(subject, subject.sites, batches), tried])}"
    with cache.alone(folder):
        found = cache.get(f"{folder}/joint.json", read_found)
        if found is None:
            found = search_jointly(subject, batches, method, stats, start, search, place)
            cache.describe(folder)
            cache.put(f"{folder}/joint.json", partial(write_json, data=found))
    return found["widths"], found["notes"]


def read_found(path: Path) -> dict[str, Any]:
    """Read a stored result. Raises ValueError if it is no JSON."""
    return json.loads(path.read_text())


def search_jointly(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    stats: Stats,
    start: Widths,
    search: Search,
    place: str = "memory",
) -> dict[str, Any]:
    """Return the widths that exchanges find, and notes: the error before and after, the moves and the passes.

    Cuts are made from the dense model's statistics, as `schedule=one_shot` does. For a schedule that makes its
    cuts from the inputs of pruned blocks this is an approximation.
    """
    with storing(place) as store, task("exchange units between sites", "trial", None) as work:
        trials = Trials(subject, batches, method, stats, search, store, work)
        found = exchange(start, search.terms, trials, search.rounds)
    notes = {name: getattr(found, name) for name in ("before", "after", "moves")}
    return {"widths": found.widths, "notes": notes | {"passes": round(trials.spent, 3)}}


class Trials:
    """Measures KL(dense || cut) in nats per token, with all sites cut, until its passes are spent.

    A pass takes all batches of the calibration through all blocks; passes of a part of either count by their
    share. The pass for the statistics counts. Single sites are tried on the first batch, from their block on.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        method: Method,
        stats: Stats,
        search: Search,
        store: Store,
        work: Work,
    ) -> None:
        self.model, self.sites, self.method, self.stats = subject.model, subject.sites, method, stats
        self.state = PartlyCut(subject.model, subject.sites)
        self.scores = score_sites(self.state, subject.sites, stats, method.criterion)
        self.batches, self.each, self.place = batches[: search.batches], 1 / len(batches), store.place
        self.most, self.spent, self.work = search.passes, 1 + self.each * len(self.batches), work
        self.made: dict[tuple[str, int], Cut] = {}
        with torch.no_grad(), evaluating(self.model):
            self.dense = [
                store.keep(log_probabilities(self.model, batch), f"dense.{number}")
                for number, batch in enumerate(self.batches)
            ]

    @torch.no_grad()
    def error(self, widths: Widths) -> float | None:
        """Return the error on all of the search's batches; None if the passes are spent."""
        if not self.pay(self.each * len(self.batches)):
            return None
        with walking(self.model, self.batches, self.place) as walk, self.cut(widths).gates():
            return divergence(walk, self.batches, self.dense)

    @torch.no_grad()
    def around(self, widths: Widths, other: Mapping[str, Sequence[int]]) -> dict[str, dict[int, float]] | None:
        """Return site -> width -> change of the error on the first batch; None if the passes are spent."""
        batches, present = self.batches[:1], self.cut(widths)
        changes: dict[str, dict[int, float]] = {name: {} for name in other}
        with walking(self.model, batches, self.place) as walk:
            blocks = len(walk.blocks)
            tried = [site for site in self.sites if other.get(site.name)]
            behind = sum((blocks - (site.block or 0)) * len(other[site.name]) for site in tried)
            if not self.pay(self.each * (2 + behind / blocks)):
                return None
            with present.gates():
                before = divergence(walk, batches, self.dense[:1])
            for block in range(blocks):
                for site in (site for site in tried if site.block == block):
                    for width in other[site.name]:
                        with self.cut({**widths, site.name: width}).gates():
                            error = divergence(walk, batches, self.dense[:1])
                        changes[site.name][width] = error - before
                if block < blocks - 1:
                    with present.gates():
                        walk.advance()
        near = {(name, width) for name in widths for width in (widths[name], *other.get(name, ()))}
        self.made = {key: cut for key, cut in self.made.items() if key in near}
        return changes

    def cut(self, widths: Widths) -> PartlyCut:
        """Return the model with every site cut to its best units."""
        for site in self.sites:
            if (site.name, widths[site.name]) not in self.made:
                made = make_cuts(self.state, [site], self.scores, widths, self.stats, self.method)
                self.made[site.name, widths[site.name]] = made[0]
        return PartlyCut(self.model, self.sites, [self.made[name, widths[name]] for name in widths])

    def pay(self, passes: float) -> bool:
        """Spend passes. -> whether there were so many left; if not, none is spent"""
        if self.spent + passes > self.most:
            return False
        self.spent += passes
        self.work.advance()
        return True
