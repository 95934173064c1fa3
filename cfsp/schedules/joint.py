"""Joint search: exchange units between sites by the error of the model that is cut everywhere.

Error curves measure each site alone. Here all other sites are cut as they are at present, so that two sites
that can each be spared, but not both, are told from two that can both go.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfsp.allocators.base import Allocator
from cfsp.allocators.exchange_units import exchange_units
from cfsp.allocators.exchanges import Search, Widths
from cfsp.bars import Work, bar, task
from cfsp.model.sites import Site
from cfsp.passes.hidden_states import Store, storing
from cfsp.passes.walk import walking
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.decide import overlap
from cfsp.schedules.dense_answers import DenseAnswers, dense_answers, divergence
from cfsp.schedules.partly_cut import PartlyCut
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

    A search that was killed goes on from its last measurement. parts: what the cuts depend on. Nothing is
    cached if the code of one is in no file.
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
            cache.describe(folder)
            name = f"{folder}/measured.json"
            log = SearchLog(
                cache.get(name, read_found) or [],
                lambda rows: cache.put(name, partial(write_json, data=rows)),
            )
            found = search_jointly(subject, batches, cutter, start, search, place, log)
            cache.put(f"{folder}/joint.json", partial(write_json, data=found))
    return found


def read_found(path: Path) -> Any:
    """Read a stored value. Raises ValueError if it is no JSON."""
    return json.loads(path.read_text())


@dataclass
class SearchLog:
    """The measurements of a search in their order, each with the passes spent so far; `keep` stores them.

    The same measurements lead to the same search, so one that was interrupted repeats what is stored here.
    """

    rows: list[list[Any]] = field(default_factory=list)
    keep: Callable[[list[list[Any]]], None] = lambda rows: None
    read: int = 0

    def known(self) -> list[Any] | None:
        """Return the next stored measurement and its passes; None if there is none left."""
        self.read += 1
        return self.rows[self.read - 1] if self.read <= len(self.rows) else None

    def add(self, value: Any, passes: float) -> None:
        self.rows.append([value, passes])
        self.keep(self.rows)


def search_jointly(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    cutter: Cutter,
    start: Widths,
    search: Search,
    place: str = "memory",
    log: SearchLog | None = None,
) -> dict[str, Any]:
    """Return `widths`, and `notes`: the error before and after, the moves and the passes.

    The error is measured on the last batches, half as many as `search.batches`. A schedule that cuts on some
    of the batches takes the first.
    """
    measured = max(1, search.batches // 2)
    if cutter.passes and len(batches) < search.batches + measured:
        print(
            f"cfsp: the joint search measures on some of the batches that it cuts on: it has {len(batches)}, "
            f"and allocator.batches={search.batches} needs {search.batches + measured} to keep them apart",
            file=sys.stderr,
        )
    with storing(place) as store, task("exchange units between sites", "trial", None) as work:
        trials = Trials(subject, batches, cutter, search, store, work, log or SearchLog())
        found = exchange_units(start, search.terms, trials, search.rounds)
    if found.before is None:
        first = cutter.passes + 2 * trials.each * len(trials.batches)
        print(
            f"cfsp: the joint search made no trial: the first takes {first:.1f} passes; expected at least so "
            f"many, not allocator.passes={search.passes:g}",
            file=sys.stderr,
        )
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
        log: SearchLog,
    ) -> None:
        self.model, self.sites, self.cutter, self.store = subject.model, subject.sites, cutter, store
        self.batches, self.each = batches[-max(1, search.batches // 2) :], 1 / len(batches)
        self.most, self.spent, self.work, self.log = search.passes, 0.0, work, log
        self.compared, self.changed = search.compared, search.terms.changed

    def error(self, widths: Widths) -> float | None:
        """Return the error on all of the search's batches; None if the passes are spent."""
        if (known := self.log.known()) is None:
            value = self.measured_error(widths)
            self.log.add(value, self.spent)
            return value
        value, self.spent = known
        return value

    def around(
        self, widths: Widths, other: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, float]] | None:
        """Return site -> width -> change of the error on one batch; None if the passes are spent."""
        if (known := self.log.known()) is None:
            changes = self.measured_changes(widths, other)
            self.log.add(changes, self.spent)
            return changes
        stored, self.spent = known
        if stored is None:
            return None
        return {name: {int(width): value for width, value in own.items()} for name, own in stored.items()}

    @cached_property
    def dense(self) -> list[DenseAnswers]:
        """The dense model's answers to all of the search's batches."""
        with walking(self.model, self.batches, self.store.place):
            return dense_answers(self.model, self.batches, self.compared, self.store)

    @torch.no_grad()
    def measured_error(self, widths: Widths) -> float | None:
        """Measure `error`. The first costs the dense model's passes too."""
        times = 1 if self.spent else 2
        if not self.pay(self.cutter.passes + self.each * times * len(self.batches)):
            return None
        dense = self.dense
        cuts = self.cutter.cut({name: [width] for name, width in widths.items()})
        whole = self.whole({name: made[0] for name, made in cuts.items()})
        with walking(self.model, self.batches, self.store.place) as walk, whole.gates():
            return divergence(walk, self.batches, dense)

    @torch.no_grad()
    def measured_changes(
        self, widths: Widths, other: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, float]] | None:
        """Measure what `around` returns."""
        batches, dense = self.batches[:1], self.dense[:1]
        changes: dict[str, dict[int, float]] = {name: {} for name in other}
        with walking(self.model, batches, self.store.place) as walk:
            blocks, at = len(walk.blocks), {site.name: site.block or 0 for site in self.sites}
            tried = [(name, width) for name, own in other.items() for width in own]
            moved = {one: self.changed(*one) for one in tried}
            behind = sum(blocks - at[next(iter(new))] for new in moved.values())
            if not self.pay(self.cutter.passes + self.each * (2 + behind / blocks)):
                return None
            made = self.cuts_of_all(widths, moved.values())
            first = {name: made[name][width] for name, width in widths.items()}
            present = self.whole(first)
            with present.gates():
                before = divergence(walk, batches, dense)
            for block in bar(range(blocks), "try single sites", "block"):
                for (name, width), new in moved.items():
                    if at[next(iter(new))] == block:
                        cuts = first | {site: made[site][one] for site, one in new.items()}
                        with self.whole(cuts).gates():
                            changes[name][width] = divergence(walk, batches, dense) - before
                if block < blocks - 1:
                    with present.gates():
                        walk.advance()
        return changes

    def cuts_of_all(self, widths: Widths, tried: Iterable[Widths]) -> dict[str, dict[int, Cut]]:
        """Return site -> width -> cut, for the present widths and all that are tried."""
        asked = {name: {width: None} for name, width in widths.items()}  # in order, the present one first
        for name, width in chain.from_iterable(new.items() for new in tried):
            asked[name][width] = None
        made = self.cutter.cut({name: [*own] for name, own in asked.items()})
        return {name: dict(zip(own, made[name], strict=True)) for name, own in asked.items()}

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
