"""Joint search: exchange units between sites by the error of the model that is cut everywhere.

Error curves measure each site alone. Here all other sites are cut as they are at present, so that two sites
that can each be spared, but not both, are told from two that can both go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfsp.allocators.base import Allocator
from cfsp.allocators.exchanges import Search, Widths, exchange_units
from cfsp.bars import Work, task
from cfsp.model.sites import Site
from cfsp.passes.hidden_states import Store, storing
from cfsp.passes.walk import walking
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.decide import overlap
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.probes import divergence, log_probabilities
from cfsp.schedules.size_targets import SizeTarget
from cfsp.statistics.cached import origin_of_statistics
from cfsp.storage.atomic import write_json
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest


@dataclass(frozen=True)
class Cutter:
    """How a schedule cuts the model to given widths.

    cut: (site name -> widths) -> site name -> a cut to each of these widths, while all other sites have the
        first of theirs. passes: what one call costs, in passes over all batches.
    """

    cut: Callable[[Mapping[str, Sequence[int]]], Mapping[str, Sequence[Cut]]]
    passes: float = 0.0


def check_search(allocator: Allocator, sites: Sequence[Site], target: SizeTarget | None) -> None:
    """Raise ValueError if units of these sites cannot be exchanged, or not without leaving the target."""
    if overlap(sites):
        raise ValueError("allocator.rounds needs sites that share no weights; expected allocator.rounds=0")
    cost = "" if allocator.probes is None else allocator.probes.cost
    if target is not None and (target.wanted.kind, cost) != ("parameters", "parameters"):
        raise ValueError(
            f"{target.wanted.key} with allocator.rounds and allocator.budget={cost}: an exchange could leave "
            "the target; expected allocator.rounds=0, or target.parameters and allocator.budget=parameters"
        )


def search_once(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    parts: Sequence[object],
    cutter: Cutter,
    start: Widths,
    search: Search,
    place: str = "memory",
) -> dict[str, Any]:
    """Return the result of `search_jointly`, from the cache if these parts searched here before.

    parts: what the cuts depend on. Nothing is cached if the code of one is in no file.
    """
    cache, code = subject.cache, code_of(search_jointly, *map(type, parts))
    if cache.folder is None or code is None:
        return search_jointly(subject, batches, cutter, start, search, place)
    asked = {
        "start": dict(start),
        "search": asdict(search),
        "parts": [[type(part).__qualname__, repr(vars(part))] for part in parts],
        "code": code,
    }
    folder = f"statistics/{digest([origin_of_statistics(subject, subject.sites, batches), asked])}"
    with cache.alone(folder):
        found = cache.get(f"{folder}/joint.json", read_found)
        if found is None:
            found = search_jointly(subject, batches, cutter, start, search, place)
            cache.describe(folder)
            cache.put(f"{folder}/joint.json", partial(write_json, data=found))
    return found


def read_found(path: Path) -> dict[str, Any]:
    """Read a stored result. Raises ValueError if it is no JSON."""
    return json.loads(path.read_text())


def search_jointly(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    cutter: Cutter,
    start: Widths,
    search: Search,
    place: str = "memory",
) -> dict[str, Any]:
    """Return `widths`, and `notes`: the error before and after, the moves and the passes.

    The error is measured on the last batches, half as many as `search.batches`. A schedule that cuts on some
    of the batches takes the first.
    """
    with storing(place) as store, task("exchange units between sites", "trial", None) as work:
        trials = Trials(subject, batches, cutter, search, store, work)
        found = exchange_units(start, search.terms, trials, search.rounds)
    notes = {name: getattr(found, name) for name in ("before", "after", "moves")}
    return {"widths": found.widths, "notes": notes | {"passes": round(trials.spent, 3)}}


class Trials:
    """Measures KL(dense || cut) in nats per token, with all sites cut, until its passes are spent.

    A pass takes all batches of the calibration through all blocks; passes of a part of either count by their
    share. Single sites are tried on one batch, from their block on, with the cuts behind them as they are.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        cutter: Cutter,
        search: Search,
        store: Store,
        work: Work,
    ) -> None:
        self.model, self.sites, self.cutter, self.store = subject.model, subject.sites, cutter, store
        self.batches, self.each = batches[-max(1, search.batches // 2) :], 1 / len(batches)
        self.most, self.spent, self.work = search.passes, 0.0, work
        self.dense: list[Tensor] = []

    @torch.no_grad()
    def error(self, widths: Widths) -> float | None:
        """Return the error on all of the search's batches; None if the passes are spent."""
        new = self.batches[len(self.dense) :]
        if not self.pay(self.cutter.passes + self.each * (len(self.batches) + len(new))):
            return None
        cuts = self.cutter.cut({name: [width] for name, width in widths.items()})
        with walking(self.model, self.batches, self.store.place) as walk:
            for number, batch in enumerate(new):
                self.dense.append(self.store.keep(log_probabilities(self.model, batch), f"dense.{number}"))
            with self.whole({name: made[0] for name, made in cuts.items()}).gates():
                return divergence(walk, self.batches, self.dense)

    @torch.no_grad()
    def around(
        self, widths: Widths, other: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, float]] | None:
        """Return site -> width -> change of the error on one batch; None if the passes are spent."""
        batches, dense = self.batches[:1], self.dense[:1]
        changes: dict[str, dict[int, float]] = {name: {} for name in other}
        with walking(self.model, batches, self.store.place) as walk:
            blocks = len(walk.blocks)
            tried = [site for site in self.sites if other.get(site.name)]
            behind = sum((blocks - (site.block or 0)) * len(other[site.name]) for site in tried)
            if not self.pay(self.cutter.passes + self.each * (2 + behind / blocks)):
                return None
            made = self.cutter.cut({name: [width, *other.get(name, ())] for name, width in widths.items()})
            first = {name: cuts[0] for name, cuts in made.items()}
            present = self.whole(first)
            with present.gates():
                before = divergence(walk, batches, dense)
            for block in range(blocks):
                for site in (site for site in tried if site.block == block):
                    for width, cut in zip(other[site.name], made[site.name][1:], strict=True):
                        with self.whole({**first, site.name: cut}).gates():
                            changes[site.name][width] = divergence(walk, batches, dense) - before
                if block < blocks - 1:
                    with present.gates():
                        walk.advance()
        return changes

    def whole(self, cuts: Mapping[str, Cut]) -> PartlyCut:
        """Return the model with a cut of every site."""
        return PartlyCut(self.model, self.sites, cuts.values())

    def pay(self, passes: float) -> bool:
        """Spend passes. -> whether there were so many left; if not, none is spent"""
        if self.spent + passes > self.most:
            return False
        self.spent += passes
        self.work.advance()
        return True
