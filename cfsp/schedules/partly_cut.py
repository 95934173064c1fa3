"""A partly cut model: gates stand for the cuts that are decided, until one surgery applies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.parameter_count import ParameterCount
from cfsp.model.remaining import Remaining
from cfsp.model.sites import Site
from cfsp.model.views import UnitView, unit_cost
from cfsp.model.weights import weight_of
from cfsp.plans.gates import Gates
from cfsp.plans.masks import axis_masks, refitted
from cfsp.plans.plan import Cut
from cfsp.statistics.base import STATISTICS


class PartlyCut:
    """A model with some cuts decided: the remaining units of its sites, and its number of parameters."""

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], cuts: Iterable[Cut] = ()):
        self.model, self.whole_sites = model, sites
        self.cuts = {cut.site: cut for cut in cuts}
        pairs = [(self.cuts[site.name], site) for site in sites if site.name in self.cuts]
        self.masks = axis_masks(pairs, model)
        self.weights = {
            member.module: refitted(cut, member, weight_of(model.get_submodule(member.module)).detach())
            for cut, site in pairs
            if cut.consumer is not None
            for member in site.consumers
        }
        """Module -> refitted weight of a consumer."""
        self._count = ParameterCount(model, sites, self.masks)
        self._whole_cost = {site.name: unit_cost(model, site) for site in sites if not self.cuts}
        self._left = {site.name: self._remaining(site).units for site in sites}
        self.sites = [self._shrunk(site) for site in sites]
        """The sites with their remaining units. Their members still refer to the whole weights."""

    def has_units(self, site: Site) -> bool:
        return bool(self._left[site.name].any())

    def gates(self) -> Gates:
        """Return gates that make the model compute as if the cuts were applied."""
        gates = {name: torch.zeros(cut.units) for name, cut in self.cuts.items()}
        for name, cut in self.cuts.items():
            gates[name][list(cut.keep)] = 1
        fills = {name: cut.fill for name, cut in self.cuts.items() if cut.fill is not None}
        biases = {
            self._site(name).consumers[0].module: cut.bias
            for name, cut in self.cuts.items()
            if cut.bias is not None
        }
        return Gates(self.model, self.whole_sites, gates, fills, self.weights, biases)

    def view(self, site: Site) -> UnitView:
        """Return the remaining weights of one of `sites`."""
        return UnitView(self.model, self._whole(site), self.masks, site.units, self.weights, site.groups)

    def stat(self, site: Site, stat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the statistics of the units left, by each statistic's `of_remaining`. [left, ...]"""
        remaining = self._remaining(site)
        return {name: STATISTICS[name].of_remaining(value, remaining) for name, value in stat.items()}

    def after(self, keep: Mapping[str, Sequence[int]]) -> PartlyCut:
        """Return the model with further cuts, of which only the sizes are right: they are not compensated.

        keep: site name -> the units that the site keeps.
        """
        cuts = {site.name: self.cut(site, keep[site.name]) for site in self.sites if site.name in keep}
        bare = (cut.decision() for cut in (self.cuts | cuts).values())  # earlier tensors are of other units
        return PartlyCut(self.model, self.whole_sites, bare)

    def cost(self, site: Site) -> int:
        """Return the number of parameters that are removed with one remaining unit (blocks: on average)."""
        if not self.cuts:
            return self._whole_cost[site.name]
        fewer = {one.name: one.units for one in self.sites} | {site.name: site.units - 1}
        return round(self.parameters() - self.parameters(fewer))

    def parameters(self, widths: Mapping[str, int] | None = None) -> float:
        """Return the model's number of parameters if its sites had these widths. Default: present widths."""
        return self._count.parameters(widths or {})

    def cut(
        self,
        site: Site,
        keep: Sequence[int],
        fill: Tensor | None = None,
        consumer: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Cut:
        """Return a cut of the whole site. keep: indices among the units left. fill: for their channels."""
        whole, before = self._whole(site), self.cuts.get(site.name)
        numbers = self._left[site.name].nonzero().flatten().tolist()
        kept = {numbers[unit] for unit in keep}
        if whole.groups > site.groups:  # for groups removed with their keys: surgery needs equal runs
            run, each = whole.units // whole.groups, len(keep) // site.groups
            gone = set(range(whole.groups)) - {number // run for number in numbers}
            kept |= {group * run + number for group in gone for number in range(each)}
        if fill is not None and before is not None:
            merged = torch.zeros(whole.units * whole.span) if before.fill is None else before.fill.clone()
            merged[self._remaining(whole).channels.to(merged.device)] = fill.to(merged)
            fill = merged
        elif before is not None:
            fill = before.fill
        if before is not None and before.bias is not None:
            bias = before.bias if bias is None else before.bias + bias
        if before is not None and consumer is None:
            consumer = before.consumer
        if consumer is not None:  # float32 would double the size of a plan for a model in half precision
            consumer = consumer.to(weight_of(self.model.get_submodule(whole.consumers[0].module)).dtype)
        return Cut(site.name, whole.units, tuple(sorted(kept)), fill, consumer, bias)

    def _remaining(self, site: Site) -> Remaining:
        return Remaining(self.model, self._whole(site), self.masks)

    def _whole(self, site: Site) -> Site:
        return self._site(site.name)

    def _site(self, name: str) -> Site:
        return next(whole for whole in self.whole_sites if whole.name == name)

    def _shrunk(self, site: Site) -> Site:
        left = self._left[site.name]
        groups = int(left.view(site.groups, -1).any(1).sum()) if site.groups > 1 else 1
        numbers = tuple(left.nonzero().flatten().tolist())
        return replace(site, units=len(numbers), groups=max(groups, 1), numbers=numbers, before=site.units)
