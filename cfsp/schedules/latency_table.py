"""Latency table: the seconds of the model at several widths of its sites, measured on this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.evaluation.latency import random_tokens
from cfsp.machine.environment import environment
from cfsp.model.blocks import stacks_of
from cfsp.model.footprint import sharing_weights
from cfsp.model.pass_cost import read_prompt, seconds_of
from cfsp.model.sites import Site
from cfsp.model.weights import weight_of
from cfsp.passes.modes import evaluating
from cfsp.passes.walk import walking
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply
from cfsp.storage.atomic import write_json
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest
from cfsp.storage.schema import read_json

ROUNDS = 9
"""Number of interleaved rounds of passes; a latency is their median."""

TILES = (64, 8)
"""Widths whose multiples matrix kernels compute fastest: tiles of a GPU's kernels, vectors of a CPU's."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a pass of the dense model, and of passes in which one site alone is cut.

    rows: one for all sites of equal shape: their names, and [units kept, seconds] in ascending order. The
    seconds are of a part of the pass that the site is in, so only differences within a row mean something.
    """

    dense: float
    rows: tuple[tuple[tuple[str, ...], tuple[tuple[int, float], ...]], ...]

    def points(self, site: str) -> np.ndarray:
        """Return the row of a site. [widths, 2]"""
        return np.array(next(points for names, points in self.rows if site in names))

    def seconds(self, site: Site) -> np.ndarray:
        """Return the seconds at every width of a site, linear between the measured ones. [units + 1]"""
        return np.interp(np.arange(site.units + 1), *self.points(site.name).T)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Return the table that was stored as JSON."""
        rows = (
            (tuple(names), tuple((int(w), float(s)) for w, s in points)) for names, points in data["rows"]
        )
        return cls(data["dense"], tuple(rows))


@dataclass(frozen=True)
class Pass:
    """A pass to time: of a whole model, or of one block of it."""

    model: PreTrainedModel
    run: Callable[[], object]

    @property
    def seconds(self) -> float:
        return seconds_of(self.run, self.model.device)


def table_once(subject: Subject, batch: int, tokens: int, steps: Mapping[str, int]) -> LatencyTable:
    """Return the result of `measure_table`, from the cache if it was measured on this machine before.

    Its name depends on the machine, the device, the threads, the model with its types, and the code. Another
    load of the machine is no reason to measure again: the rounds of all widths are interleaved.
    """
    model, cache, code = subject.model, subject.cache, code_of(measure_table)
    if cache.folder is None or code is None:
        return measure_table(model, subject.sites, batch, tokens, steps)
    where = environment(model.device)
    asked = {
        "model": subject.fingerprint,
        "attention": model.config._attn_implementation,
        "machine": [
            platform.node(),
            os.cpu_count(),
            where["device"],
            where["threads"],
            where["versions"]["torch"],
        ],
        "sites": [asdict(site) for site in subject.sites],
        "passes": [batch, tokens, dict(steps)],
        "code": code,
    }
    folder = f"statistics/{digest(asked)}"
    with cache.alone(folder):
        found = cache.get(f"{folder}/latency.json", read_table)
        if found is None:
            found = measure_table(model, subject.sites, batch, tokens, steps)
            cache.describe(folder)
            cache.put(f"{folder}/latency.json", partial(write_json, data=asdict(found)))
    return found


def read_table(path: Path) -> LatencyTable:
    """Read a stored table. Raises ValueError if it is no JSON."""
    return LatencyTable.of(read_json(path))


@torch.no_grad()
def measure_table(
    model: PreTrainedModel, sites: Sequence[Site], batch: int, tokens: int, steps: Mapping[str, int]
) -> LatencyTable:
    """Time the model on `batch` x `tokens` random tokens with one site cut, for one site of each shape.

    steps: site name -> smallest change of its width. A row is measured in the block of its first site, or in
    the whole model where the site is in none or in one of two stacks. Every round times the dense model too,
    and what counts is a pass's share of its round, so that a load that comes or goes does not. At last, all
    savings are scaled to what the whole model saves with half of the units of every site: alone, a block
    finds its caches colder.

    Cost: `ROUNDS + 1` passes of the whole model and of about 17 blocks for each shape, and two whole passes.

    Raises ValueError if the model takes no less time without half of its units.
    """
    ids, timed = random_tokens([model], batch, tokens), []
    with evaluating(model):
        for group in bar(sites_by_shape(model, sites), "time widths", "shape"):
            whole, odd = widths_to_time(group[0], steps[group[0].name])
            timed.append((group, whole + odd, odd, time_widths(model, group[0], whole + odd, ids)))
    dense = median(seconds[0] for *_, rounds in timed for seconds in rounds)
    rows = []
    for group, widths, odd, rounds in timed:
        parts = [[one / sum(times) for one in times] for times in rounds]
        whole, *shares = (median(column) for column in zip(*parts, strict=True))
        found = {width: dense * share / whole for width, share in zip(widths, shares, strict=True)}
        rows.append((tuple(site.name for site in group), tuple(smoothed(found, odd).items())))
    return scaled(LatencyTable(dense, tuple(rows)), model, sites, ids)


def scaled(table: LatencyTable, model: PreTrainedModel, sites: Sequence[Site], ids: Tensor) -> LatencyTable:
    """Return the table with savings that add up to those of the model with all sites at half their units."""
    half: dict[str, int] = {}
    expected = 0.0
    for names, points in table.rows:
        units, most = points[-1]
        width, seconds = min((one for one in points if one[0]), key=lambda one: abs(one[0] - units / 2))
        expected += len(names) * (most - seconds)
        half |= dict.fromkeys(names, width)
    with evaluating(model):
        passes = [
            Pass(one, partial(read_prompt, one, ids)) for one in (model, with_widths(model, sites, half))
        ]
        saved = median(1 - less / whole for whole, less in in_turns(passes)) * table.dense
    if min(saved, expected) <= 0:
        raise ValueError(
            f"latency: without half of its units the model takes no less time on {len(ids)} x {ids.shape[1]} "
            "tokens; expected more or longer samples, or MACs"
        )
    factor = saved / expected
    rows = ((names, tuple((width, factor * one) for width, one in points)) for names, points in table.rows)
    return LatencyTable(table.dense, tuple(rows))


def smoothed(found: Mapping[int, float], odd: Sequence[int]) -> dict[int, float]:
    """Return width -> seconds without what can only be noise. found: width -> measured seconds.

    A multiple of a tile never takes less than narrower multiples, nor does the `odd` unit after one take less
    than it or than the unit after a narrower one. Where that was measured, the mean of both is taken. The
    unit after a multiple may take more than the next multiple.
    """
    whole = [width for width in sorted(found) if width not in odd]
    seconds = dict(zip(whole, rising([found[width] for width in whole]), strict=True))
    for width, value in zip(odd, rising([found[width] for width in odd]), strict=True):
        seconds[width] = max(value, seconds.get(width - 1, 0.0))
    return dict(sorted(seconds.items()))


def rising(values: Sequence[float]) -> list[float]:
    """Return the nearest values that never fall, by least squares: neighbours that fall get their mean."""
    runs: list[list[float]] = []
    for value in values:
        runs.append([value])
        while len(runs) > 1 and fmean(runs[-2]) > fmean(runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
    return [fmean(run) for run in runs for _ in run]


def time_widths(model: PreTrainedModel, site: Site, widths: Sequence[int], ids: Tensor) -> list[list[float]]:
    """Return the seconds of the dense model, then of the site's pass at each width, for every round."""
    with ExitStack() as stack:
        passes = [Pass(model, partial(read_prompt, model, ids))]
        copies = [with_widths(model, [site], {site.name: width}) for width in widths]
        passes += [stack.enter_context(pass_of(made, site, ids)) for made in copies]
        return in_turns(passes)


def in_turns(passes: Sequence[Pass]) -> list[list[float]]:
    """Return the seconds of all passes in every round but the first. Every other round runs backwards."""
    rounds = []
    for number in range(ROUNDS + 1):
        order = range(len(passes))[:: 1 if number % 2 else -1]
        seconds = {place: passes[place].seconds for place in order}
        rounds.append([seconds[place] for place in range(len(passes))])
    return rounds[1:]


def with_widths(model: PreTrainedModel, sites: Sequence[Site], widths: Mapping[str, int]) -> PreTrainedModel:
    """Return a copy of the model with sites of these widths. It shares all weights that are not cut."""
    made = sharing_weights(model)
    cuts = (
        Cut(site.name, site.units, best_units(torch.zeros(site.units), widths[site.name], site.groups))
        for site in sites
        if widths[site.name] < site.units
    )
    apply(PrunePlan(tuple(cuts)), sites, made)
    return made


@contextmanager
def pass_of(model: PreTrainedModel, site: Site, ids: Tensor) -> Iterator[Pass]:
    """Yield the smallest pass that the site is a part of."""
    if site.block is None or len(stacks_of(model)) > 1:
        yield Pass(model, partial(read_prompt, model, ids))
        return
    with walking(model, [{"input_ids": ids}]) as walk:
        for _ in range(site.block):
            walk.skip()
        yield Pass(model, partial(walk.run, 0))


def widths_to_time(site: Site, step: int) -> tuple[list[int], list[int]]:
    """Return the widths of a row: eighths of the site, as multiples of a tile, and odd ones, both ascending.

    Kernels compute whole tiles, so that the seconds rise in steps and one unit more than a multiple may cost
    a whole tile. If a site may have any width, the odd ones are that unit after each multiple. Between these
    widths the seconds are close to linear.
    """
    tile = step
    if site.is_a_width and step == 1:
        tile = next((tile for tile in TILES if site.units >= 8 * tile), 1)
    whole = {site.units * eighth // (8 * tile) * tile for eighth in range(9)} | {site.units}
    after = {width + 1 for width in whole if width < site.units} if tile > step else set()
    whole = (whole | (set() if after else {step})) - (set() if site.may_go else {0})
    return sorted(whole), sorted(after)


def sites_by_shape(model: PreTrainedModel, sites: Sequence[Site]) -> list[list[Site]]:
    """Return the sites in groups of equal shape, which take equally long."""
    layers = getattr(model.config, "layer_types", None) or ()
    groups: dict[tuple, list[Site]] = {}
    for site in sites:
        shapes = tuple(
            (one.dim, one.span, weight_of(model.get_submodule(one.module)).shape) for one in site.members
        )
        layer = layers[site.block] if site.block is not None and site.block < len(layers) else None
        groups.setdefault((site.kind, site.units, site.groups, shapes, layer), []).append(site)
    return [*groups.values()]
