"""Prices: what the units of sites take of a budget that is not counted in parameters."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.model.footprint import without_data
from cfsp.model.pass_cost import macs
from cfsp.model.sites import Site
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply
from cfsp.schedules.latency_table import table_once
from cfsp.statistics.base import Stats


def prices_of(subject: Subject, batches: Sequence[Mapping[str, Tensor]], allocator: Allocator) -> Stats:
    """Return what the sites' units cost, if the allocator's probes do not count parameters.

    -> site name -> `unit_cost`: MACs of a unit, one value per kind; or `width_seconds` [widths, 2]: units
    kept and seconds, of a pass over as many tokens as the first batch has (`cfsp.schedules.latency_table`)
    """
    probes, sites = allocator.probes, subject.sites
    stats: Stats = {}
    if probes is not None and probes.cost == "macs":
        for kind in dict.fromkeys(site.kind for site in sites):
            own = [site for site in sites if site.kind == kind]
            price = macs_of_unit(subject.model, own, batches[: probes.batches], probes.empty)
            stats |= {site.name: {"unit_cost": torch.tensor(price, dtype=torch.float64)} for site in own}
    if probes is not None and probes.cost == "latency":
        batch, tokens = batches[0]["input_ids"].shape
        table = table_once(subject, batch, tokens, {site.name: allocator.step(site) for site in sites})
        stats |= {site.name: {"width_seconds": torch.from_numpy(table.points(site.name))} for site in sites}
    return stats


def macs_of_unit(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Mapping[str, Tensor]], empty: bool
) -> float:
    """Return the MACs of one sample that a unit of these sites saves, mean over the samples of the batches.

    Counted on a copy without half of the units; 0 if no site can be cut. empty: whether a site may go.
    """
    cuts = [
        Cut(site.name, site.units, best_units(torch.zeros(site.units), width, site.groups))
        for site in sites
        if (width := half_of(site)) or (empty and site.may_go)
    ]
    if not cuts:
        return 0.0
    whole = without_data(model)
    half = copy.deepcopy(whole)
    apply(PrunePlan(tuple(cuts)), sites, half)
    lengths: Counter[int] = Counter()
    for batch in batches:
        samples, tokens = batch["input_ids"].shape
        lengths[tokens] += samples
    saved = sum(count * (macs(whole, tokens) - macs(half, tokens)) for tokens, count in lengths.items())
    return saved / lengths.total() / sum(cut.units - len(cut.keep) for cut in cuts)


def half_of(site: Site) -> int:
    """Return half of a site's units, at least one per group, less than all; 0 if there is no such width."""
    steps = site.units // site.groups
    return min(max(1, round(steps / 2)), steps - 1) * site.groups
