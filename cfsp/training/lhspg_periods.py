"""LHSPG at work: periods in which redundant units shrink to zero while adapters are trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.machine.environment import is_main
from cfsp.model.find_sites import find_again
from cfsp.model.sites import Site
from cfsp.model.views import unit_cost
from cfsp.training.adapted_layers import AdaptedLayer, UnitRows
from cfsp.training.half_space import group_norms, half_space_step, mixed_saliency
from cfsp.training.lhspg_options import LHSPGOptions
from cfsp.training.pruner import Decide, Pruning


@dataclass
class Shrinking:
    """The redundant units of a site in the present period.

    rest: what their weights are too coarse for, so that small steps are not lost, as `UnitRows.put` returns
    it; None where they are in float32. [units, places] each
    shrink: what a trial step takes off each unit's norm. [units]
    """

    units: list[int] = field(default_factory=list)
    rest: list[Tensor | None] = field(default_factory=list)
    shrink: Tensor = field(default_factory=lambda: torch.zeros(0))


class HalfSpacePruning(Pruning):
    """The periods of LHSPG in one model.

    period: -1 in the warm-up, then the index of the present one, in the end the number of periods.
    kept: site name -> units that are neither zero nor shrinking. due: how many the site loses in the end.
    """

    def __init__(
        self,
        pruner: LHSPGOptions,
        model: PreTrainedModel,
        sites: Sequence[Site],
        target: float,
        decide: Decide,
    ) -> None:
        self.pruner, self.model, self.sites, self.target, self.decide = pruner, model, sites, target, decide
        self.cost = {site.name: unit_cost(model, site) for site in sites}
        self.kept = {site.name: [*range(site.units)] for site in sites}
        self.due = {site.name: 0 for site in sites}
        self.now = {site.name: Shrinking() for site in sites}
        self.period, self.ends, self.optimizer = -1, [0], None
        self.selected = [0] * pruner.periods
        self.projected = [0] * pruner.periods

    def join(self, module: nn.Module) -> None:
        self.sites = find_again(self.model, self.sites)
        paths = dict.fromkeys(member.module for site in self.sites for member in site.producers)
        self.layers = {path: AdaptedLayer.at(self.model, path) for path in paths}
        self.rows = {site.name: UnitRows(self.model, site, self.layers) for site in self.sites}

    def steer(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def begin(self, steps: int) -> None:
        self.pruner.check_length(steps, 0)
        self.ends = self.pruner.ends(steps)

    def groups(self) -> list[dict[str, Any]]:
        return []

    def rate(self, steps: int) -> float:
        return 0.0

    def begin_step(self, progress: float) -> None:
        """Do nothing: units shrink after the optimizer's step."""

    def penalty(self) -> Tensor:
        """Return 0: nothing is added to the loss. []"""
        return torch.zeros((), device=self.model.device)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step < self.ends[0]:
            return
        if 0 <= self.period < self.pruner.periods:
            first, last = self.ends[self.period : self.period + 2]
            self.shrink(last - first, step - first)
        self.keep_zero()
        if step in self.ends:
            self.select(self.ends.index(step))

    def shrink(self, steps: int, done: int) -> None:
        """Take one step towards zero for all redundant units. done: steps of the period, this one too."""
        for name, now in self.now.items():
            if not now.units:
                continue
            rows, factor = self.rows[name], 0.0
            new = rows.take(now.units, now.rest)
            if done == steps:
                new = [torch.zeros_like(one) for one in new]
            elif self.pruner.variant == "linear_decay":
                factor = (steps - done) / (steps - done + 1)
                new = [one * factor for one in new]
            else:
                added = rows.added(now.units)
                new, gone = half_space_step(new, added, now.shrink, self.pruner.epsilon)
                self.projected[self.period] += int(gone.sum())
            rows.scale_adapters(now.units, factor)
            now.rest = rows.put(now.units, new)

    def keep_zero(self) -> None:
        """Undo what the optimizer gave to the adapters of units that are zero already."""
        for site in self.sites:
            if gone := self.zero_units(site):
                self.rows[site.name].scale_adapters(gone, 0.0)

    def zero_units(self, site: Site) -> list[int]:
        """Return the units that earlier periods made zero."""
        left = {*self.kept[site.name], *self.now[site.name].units}
        return [unit for unit in range(site.units) if unit not in left]

    def select(self, period: int) -> None:
        """End a period, or the warm-up, and mark the units that shrink in the next one."""
        saliency = self.saliency() if period < self.pruner.periods else {}
        if period > 0 and self.pruner.variant == "paper":
            self.merge()
        self.period = period
        self.now = {site.name: Shrinking() for site in self.sites}
        if period == self.pruner.periods:
            return
        if period == 0:
            self.allocate(saliency)
        steps = self.ends[period + 1] - self.ends[period]
        redundant = self.redundant(saliency, period + 1)
        for site in self.sites:
            if units := redundant[site.name]:
                norms = group_norms(self.rows[site.name].take(units))
                self.now[site.name] = Shrinking(units, [], norms / steps)
            self.kept[site.name] = [unit for unit in self.kept[site.name] if unit not in {*units}]
            self.selected[period] += len(units)

    def allocate(self, saliency: Mapping[str, Tensor]) -> None:
        """Divide all that is to go over the sites. Report on stderr if periods will be without a unit."""
        stay = self.decide(saliency)
        self.due = {site.name: site.units - len(stay[site.name]) for site in self.sites}
        empty = self.pruner.periods - sum(self.due.values())
        if empty > 0 and is_main():  # the widths were not known before the warm-up
            print(
                f"cfsp: {sum(self.due.values())} units are to go in periods={self.pruner.periods}, so "
                f"{empty} of these have none; their steps train adapters alone",
                file=sys.stderr,
            )

    def redundant(self, saliency: Mapping[str, Tensor], periods: int) -> dict[str, list[int]]:
        """Return site name -> the units that shrink next, so that after so many periods their part is gone.

        They are the lowest of all sites together, but no site loses more than its due.
        """
        every, total = self.pruner.periods, sum(self.due.values())
        gone = {site.name: site.units - len(self.kept[site.name]) for site in self.sites}
        count = (2 * total * periods + every) // (2 * every) - sum(gone.values())  # rounded, from the start
        lowest: list[tuple[float, str, int]] = []
        for site in self.sites:
            kept, left = self.kept[site.name], self.due[site.name] - gone[site.name]
            values, places = saliency[site.name][kept].sort(stable=True)
            lowest += [
                (value, site.name, kept[place])
                for value, place in zip(values[:left].tolist(), places[:left].tolist(), strict=True)
            ]
        lowest.sort(key=lambda one: one[0])  # stable: of equals the first
        found: dict[str, list[int]] = {site.name: [] for site in self.sites}
        for _, name, unit in lowest[:count]:
            found[name].append(unit)
        return {name: sorted(units) for name, units in found.items()}

    def saliency(self) -> dict[str, Tensor]:
        """Return site name -> saliency of each unit [units]; only those of `kept` mean anything."""
        sums = {site.name: self.rows[site.name].sums() for site in self.sites}
        alive = {}
        for site in self.sites:
            alive[site.name] = torch.zeros(site.units, dtype=torch.bool, device=self.model.device)
            alive[site.name][self.kept[site.name]] = True
        return mixed_saliency(sums, alive, self.pruner.proxies)

    def merge(self) -> None:
        """Add the adapters to the weights of the units that stay; their product in zero units is zero."""
        for layer in self.layers.values():
            layer.merge()
            for factor in (layer.a, layer.b):
                state = {} if self.optimizer is None else self.optimizer.state.get(factor, {})
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()  # moments of another B, and the count of steps that corrects them

    def removed(self) -> float:
        total = sum(site.units * self.cost[site.name] for site in self.sites)
        return sum(len(self.zero_units(site)) * self.cost[site.name] for site in self.sites) / total

    def decided(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(kept) for name, kept in self.kept.items()}

    def state(self) -> dict[str, Tensor]:
        found = {
            "period": torch.tensor(self.period),
            "counts": torch.tensor([self.selected, self.projected]),
        }
        for name, now in self.now.items():
            found[f"{name}.kept"] = torch.tensor(self.kept[name], dtype=torch.long)
            found[f"{name}.units"] = torch.tensor(now.units, dtype=torch.long)
            found[f"{name}.shrink"], found[f"{name}.due"] = now.shrink, torch.tensor(self.due[name])
            rows = self.rows[name].take(now.units) if now.units else []
            found |= {f"{name}.rows.{place}": one.cpu() for place, one in enumerate(rows)}
            found |= {f"{name}.rest.{place}": one for place, one in enumerate(now.rest) if one is not None}
        for path, layer in self.layers.items():
            for place, (a, b) in enumerate(layer.merged):
                found |= {f"{path}.a.{place}": a, f"{path}.b.{place}": b}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, and the base weights with it, by the same sums in the same order."""
        device, self.period = self.model.device, int(state["period"])
        self.selected, self.projected = state["counts"].tolist()
        for path, layer in self.layers.items():
            while f"{path}.a.{len(layer.merged)}" in state:
                place = len(layer.merged)
                a, b = state[f"{path}.a.{place}"], state[f"{path}.b.{place}"]
                layer.merged.append((a, b))
                layer.add(a.to(device), b.to(device))
        for site in self.sites:
            name, rows = site.name, self.rows[site.name]
            self.kept[name], units = state[f"{name}.kept"].tolist(), state[f"{name}.units"].tolist()
            self.due[name] = int(state[f"{name}.due"])
            if units:
                parts = range(len(rows.parts()))
                rows.put(units, [state[f"{name}.rows.{place}"].to(device) for place in parts])
                rest = [state.get(f"{name}.rest.{place}") for place in parts]
                rest = [None if one is None else one.to(device) for one in rest]
                self.now[name] = Shrinking(units, rest, state[f"{name}.shrink"].to(device))
            if gone := self.zero_units(site):
                rows.put(gone, [torch.zeros_like(one) for one in rows.take(gone)])

    def detach(self) -> dict[str, Any]:
        return {
            "pruner": type(self.pruner).__name__,
            "asked": self.target,
            "reached": self.removed(),
            "periods": [
                {"ended": end, "selected": selected, "projected": projected}
                for end, selected, projected in zip(self.ends[1:], self.selected, self.projected, strict=True)
            ],
        }
