"""Progress: a model as it will be after some cuts, which are held as gates until the one surgery."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.blocks import block_modules
from cfsp.model.sites import Member, Site
from cfsp.model.views import UnitView, learned_weights, left_places, unit_cost
from cfsp.model.weights import weight_of
from cfsp.plans.gates import Gates
from cfsp.plans.masks import axis_masks, refitted
from cfsp.plans.plan import Cut
from cfsp.statistics.base import STATISTICS
from cfsp.statistics.gradients import TAYLOR


class Progress:
    """A model of which some cuts are decided: what is left of its sites, and what that weighs."""

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
        """Module -> its weight, of consumers that were fitted anew."""
        self._left = {site.name: self._units_left(site) for site in sites}
        self.sites = [self._shrunk(site) for site in sites]
        """The sites with the units that they have left; their members still speak of the whole weights."""

    def has_units(self, site: Site) -> bool:
        return bool(self._left[site.name].any())

    def gates(self) -> Gates:
        """Makes the model compute as if the cuts were done."""
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
        """The weights that are left of one of `sites`."""
        return UnitView(self.model, self._whole(site), self.masks, site.units, self.weights, site.groups)

    def stat(self, site: Site, stat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The statistics of the units that are left.

        stat: of the whole site, name -> value [units * span], of blocks [units]; of moments one more place
        for the constant, on two axes or one. The result has the same axes, each with what is left of it.
        """
        whole, units = self._whole(site), self._left[site.name]
        found = {}
        for name, value in stat.items():
            if name in TAYLOR and site.kind != "block":
                rows = [member for _, member in learned_weights(self.model, whole)]
                found[name] = value[torch.cat([self._places_left(whole, member) for member in rows])]
            elif name in TAYLOR:
                found[name] = value.view(-1, whole.units)[:, units].flatten()
            elif value.dim() == 0:
                found[name] = value
            elif (square := name in STATISTICS and STATISTICS[name].axes == 2) or name.startswith("target_"):
                left = torch.cat([self._channels_left(whole), torch.tensor([True])])  # and the constant
                found[name] = value[left][:, left] if square else value[left]
            else:
                found[name] = value[units if site.kind == "block" else self._channels_left(whole)]
        return found

    def after(self, keep: Mapping[str, Sequence[int]]) -> Progress:
        """The state in which these sites keep only these of their units."""
        cuts = {site.name: self.cut(site, keep[site.name]) for site in self.sites if site.name in keep}
        return Progress(self.model, self.whole_sites, (self.cuts | cuts).values())

    def cost(self, site: Site) -> int:
        """Parameters that one of the units left takes with it (of blocks: on average)."""
        if not self.cuts:
            return unit_cost(self.model, site)
        fewer = {one.name: one.units for one in self.sites} | {site.name: site.units - 1}
        return round(self.parameters() - self.parameters(fewer))

    def parameters(self, widths: Mapping[str, int] | None = None) -> float:
        """Parameters of the model if its sites had these widths; by default those that are left.

        Exact also where sites share weights: a weight keeps the product of its axes' shares.
        """
        shares = self._axis_shares(widths or {})
        total, seen = 0.0, set()
        for path, module in self.model.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) not in seen:
                    seen.add(id(weight))
                    total += self._numel(path, module, name, weight, shares)
        return total

    def cut(
        self,
        site: Site,
        keep: Sequence[int],
        fill: Tensor | None = None,
        consumer: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Cut:
        """A cut of the whole site from units chosen among those left. fill: of their channels."""
        whole, before = self._whole(site), self.cuts.get(site.name)
        numbers = self._left[site.name].nonzero().flatten().tolist()
        kept = {numbers[unit] for unit in keep}
        if whole.groups > site.groups:  # groups that went with their keys: surgery wants equal runs
            run, each = whole.units // whole.groups, len(keep) // site.groups
            gone = set(range(whole.groups)) - {number // run for number in numbers}
            kept |= {group * run + number for group in gone for number in range(each)}
        if fill is not None and before is not None:
            merged = torch.zeros(whole.units * whole.span) if before.fill is None else before.fill.clone()
            merged[self._channels_left(whole).to(merged.device)] = fill.to(merged)
            fill = merged
        elif before is not None:
            fill = before.fill
        if before is not None and before.bias is not None:
            bias = before.bias if bias is None else before.bias + bias
        if before is not None and consumer is None:
            consumer = before.consumer
        if consumer is not None:  # float32 would double a plan for a model of half precision
            read = self.model.get_submodule(whole.consumers[0].module)
            consumer = consumer.to(weight_of(read).dtype)
        return Cut(site.name, whole.units, tuple(sorted(kept)), fill, consumer, bias)

    def _whole(self, site: Site) -> Site:
        return self._site(site.name)

    def _site(self, name: str) -> Site:
        return next(whole for whole in self.whole_sites if whole.name == name)

    def _shrunk(self, site: Site) -> Site:
        left = self._left[site.name]
        groups = int(left.view(site.groups, -1).any(1).sum()) if site.groups > 1 else 1
        numbers = tuple(left.nonzero().flatten().tolist())
        return replace(site, units=len(numbers), groups=max(groups, 1), numbers=numbers, before=site.units)

    def _units_left(self, site: Site) -> Tensor:
        """[units], bool"""
        if site.kind == "block":
            return self.masks.get((site.name, 0), torch.ones(site.units, dtype=torch.bool))
        return self._places_left(site, site.consumers[0]).view(site.units, -1).any(1)

    def _places_left(self, site: Site, member: Member) -> Tensor:
        """[units * span of the member], bool"""
        mask = self.masks.get((member.module, member.dim))
        places = member.places(range(site.units))
        return torch.ones(len(places), dtype=torch.bool) if mask is None else mask[places]

    def _channels_left(self, site: Site) -> Tensor:
        """[units * span], bool"""
        return self._places_left(site, site.consumers[0])

    def _axis_shares(self, widths: Mapping[str, int]) -> dict[tuple[str, int], float]:
        """(module, dim) -> share of what is left of the axis that stays; (block, -1): of the block."""
        shares: dict[tuple[str, int], float] = {}
        for site, whole in zip(self.sites, self.whole_sites, strict=True):
            gone = site.units - widths.get(site.name, site.units)
            if not gone:
                continue
            if site.kind == "block":
                for path in whole.blocks:
                    shares[path, -1] = 1 - gone / site.units
                continue
            lost: dict[tuple[str, int], float] = {}
            for member in whole.members:
                axis = (member.module, member.dim)
                places = len(left_places(member, whole.units, self.masks))
                lost[axis] = lost.get(axis, 0) + places * gone / site.units / self._axis_left(*axis)
            for axis, share in lost.items():
                shares[axis] = shares.get(axis, 1) * (1 - share)
        return shares

    def _axis_left(self, path: str, dim: int) -> int:
        mask = self.masks.get((path, dim))
        whole = weight_of(self.model.get_submodule(path))
        return whole.shape[dim] if mask is None else int(mask.sum())

    def _numel(
        self, path: str, module: nn.Module, name: str, weight: Tensor, shares: Mapping[tuple[str, int], float]
    ) -> float:
        """What is left of one parameter."""
        output = int(isinstance(module, Conv1D))
        axes = {"weight": range(weight.dim()), "bias": [output]}.get(name, [])
        if name == "bias":
            lengths = [self._axis_left(path, output)] if hasattr(module, "weight") else [weight.numel()]
        else:
            lengths = [self._axis_left(path, dim) for dim in axes] or [weight.numel()]
        kept = math.prod(lengths) * math.prod(shares.get((path, dim), 1.0) for dim in axes)
        for site in self.whole_sites:
            if site.kind == "block":
                for unit, block in enumerate(site.blocks):
                    if path.startswith(f"{block}."):
                        kept *= shares.get((block, -1), 1.0) * bool(self._left[site.name][unit])
        return kept


def site_parameters(model: PreTrainedModel, sites: Sequence[Site]) -> int:
    """The parameters that would go with all units of all sites."""
    whole = Progress(model, sites)
    return round(whole.parameters() - whole.parameters({site.name: 0 for site in sites}))


def parameters(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, int]:
    """Parameters of the sites (what goes with all of their units), of all blocks, of the model.

    A tied weight counts once.
    """
    blocks = [model.get_submodule(path) for path in block_modules(model)]
    return {
        "sites": site_parameters(model, sites),
        "blocks": sum(weight.numel() for block in blocks for weight in block.parameters()),
        "model": sum(weight.numel() for weight in model.parameters()),
    }
