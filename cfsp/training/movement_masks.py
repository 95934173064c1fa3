"""Movement pruning at work: gates in a model, opened and closed while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cfsp.model.sites import Member, Site
from cfsp.model.views import unit_cost
from cfsp.model.weights import weight_of
from cfsp.training.control import Controller, cubic
from cfsp.training.learned_gates import Gate, Given, HardConcrete, Step, TileGate, UnitGate, lowest_kept
from cfsp.training.movement_options import MovementOptions
from cfsp.training.pruner import Pruning

STEERED = ("soft", "hard", "hard_concrete")
"""Masks whose threshold is fixed, so that a penalty decides how many scores fall below it."""


RULES = {"hard_concrete": HardConcrete(), "magnitude": Given()}
"""Mask -> its rule; the others have a step."""

STARTS = {"hard_concrete": 2.0}
"""Mask -> score that every gate begins with; the others begin with 0."""


def scored_layers(site: Site) -> list[str]:
    """Return the paths of a site's linear layers."""
    return [*dict.fromkeys(member.module for member in site.members)]


class MovementPruning(Pruning):
    """One gate per site, or one per weight of a site with tiles."""

    def __init__(
        self, pruner: MovementOptions, model: PreTrainedModel, sites: Sequence[Site], target: float
    ) -> None:
        self.pruner, self.model, self.sites, self.target = pruner, model, sites, target
        self.learned, self.steered = pruner.mask != "magnitude", pruner.mask in STEERED
        self.cost = {site.name: unit_cost(model, site) for site in sites}
        self.total = sum(site.units * self.cost[site.name] for site in sites)
        self.control = Controller(target, pruner.gain)
        self.due, self.settled, self.reached = 0.0, False, 0.0
        self.gates = {site.name: self.gates_of(site) for site in sites}

    def gates_of(self, site: Site) -> dict[str, Gate]:
        """Put the gates of one site into the model. Returns module -> its gate."""
        rule, start = RULES.get(self.pruner.mask, Step()), STARTS.get(self.pruner.mask, 0.0)
        consumer, tile = site.consumers[0], self.pruner.tile_of(site)
        gates: dict[str, Gate] = {}
        for path in scored_layers(site) if tile else [consumer.module]:
            module = self.model.get_submodule(path)
            weight = weight_of(module)
            dim = next(member.dim for member in site.members if member.module == path)
            gates[path] = (
                TileGate(tile, rule, start, weight, dim)
                if tile
                else UnitGate(consumer, site.units, rule, start, weight)
            )
            parametrize.register_parametrization(module, "weight", gates[path])
        return gates

    def all_gates(self) -> Iterator[tuple[Site, str, Gate]]:
        """Yield every gate with its site and the path of its module."""
        for site in self.sites:
            for path, gate in self.gates[site.name].items():
                yield site, path, gate

    def groups(self, steps: int) -> list[dict[str, Any]]:
        if not self.learned:
            return []
        scores = [gate.scores for _, _, gate in self.all_gates()]
        return [{"params": scores, "lr": self.pruner.rate(steps), "weight_decay": 0.0}]

    @torch.no_grad()
    def begin_step(self, progress: float) -> None:
        pruner = self.pruner
        self.due = cubic(progress, pruner.warmup, pruner.cooldown)
        if self.settled or self.due == 0:
            return
        if self.due == 1:
            self.settle()
        elif self.steered:
            for _, _, gate in self.all_gates():
                gate.threshold.fill_(pruner.threshold_at(self.due))
            self.control.step(self.removed(), self.due, progress)
        else:
            self.close(self.target * self.due)

    def close(self, share: float) -> None:
        """Set the thresholds so that this share of the scores is masked: of each gate, or of all together."""
        found = [*self.all_gates()]
        if not self.learned:
            for _, path, gate in found:
                original = self.model.get_parameter(f"{path}.parametrizations.weight.original")
                gate.scores.copy_(gate.mean_of_weights(original.abs()))
        if self.pruner.mask in ("top", "magnitude"):
            for _, _, gate in found:
                gate.threshold.copy_(lowest_kept(gate.scores, share))
            return
        prices = [self.price(site, gate) for site, _, gate in found]
        values = [gate.scores.flatten() / price for (_, _, gate), price in zip(found, prices, strict=True)]
        threshold = lowest_kept(torch.cat(values), share)
        for (_, _, gate), price in zip(found, prices, strict=True):
            gate.threshold.copy_(threshold * price)

    def price(self, site: Site, gate: Gate) -> float:
        """Return what a score of this gate is divided by before scores of different gates are compared."""
        if self.pruner.mask != "budget":
            return 1.0
        weights = site.units * self.cost[site.name] / len(self.gates[site.name])
        return weights / gate.scores.numel() * len([*self.all_gates()]) / self.total

    def settle(self) -> None:
        """Decide the masks for good, such that the share that is asked for is removed."""
        self.reached, low, high = self.removed(), 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            self.close(middle)
            low, high = (low, middle) if self.removed() >= self.target else (middle, high)
        self.close(high)
        for site in self.sites:
            closed, consumer = self.unit_masks(site) == 0, site.consumers[0]
            for gate in self.gates[site.name].values():
                gate.settle()
            places = consumer.places(closed.nonzero().flatten().tolist())
            self.gates[site.name][consumer.module].channels[places] = 0
        self.settled = True

    def penalty(self) -> Tensor:
        total = torch.zeros((), device=self.model.device)
        if not self.steered or self.settled or self.due == 0:
            return total
        kinds = [*dict.fromkeys(site.kind for site in self.sites)]
        for kind in kinds:
            open_ = [
                gate.rule.openness(gate.scores).mean()
                for site, _, gate in self.all_gates()
                if site.kind == kind
            ]
            total = total + self.pruner.penalties.get(kind, 0.0) / len(kinds) * torch.stack(open_).mean()
        return self.due * self.control.factor * total

    @torch.no_grad()
    def removed(self) -> float:
        gone = sum(float((self.unit_masks(site) == 0).sum()) * self.cost[site.name] for site in self.sites)
        return gone / self.total

    def unit_masks(self, site: Site) -> Tensor:
        """Return the open part of each unit; 0 if all that it reads or gives is masked. [units]"""
        return self.unit_means(
            site, lambda gate: gate.decided if gate.settled else (gate.scores > gate.threshold).float()
        )

    def unit_means(self, site: Site, value: Callable[[Gate], Tensor]) -> Tensor:
        """Return the mean of the gates' values over each unit's outputs, times that of its inputs. [units]"""
        gates, consumer = self.gates[site.name], site.consumers[0]
        members = [consumer, *(value_members(site) if self.pruner.tile_of(site) else [])]
        found = torch.ones(site.units, device=self.model.device)
        for member in members:
            gate = gates[member.module]
            found = found * gate.mean_of_units(value(gate), member, site.units)
        return found

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Return site name -> score of each unit [units]; closed units are below all open ones."""
        found = {
            site.name: self.unit_means(
                site, lambda gate: gate.rule.openness(gate.scores) if self.learned else gate.scores
            )
            for site in self.sites
        }
        most = max(float(score.abs().max()) for score in found.values()) + 1
        return {site.name: found[site.name] - most * (self.unit_masks(site) == 0) for site in self.sites}

    def state(self) -> dict[str, Tensor]:
        control = self.control
        numbers = [control.error, control.integral, control.progress, self.reached, float(self.settled)]
        return {"control": torch.tensor(numbers, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        control = self.control
        control.error, control.integral, control.progress, self.reached, settled = state["control"].tolist()
        self.settled = bool(settled)
        for _, _, gate in self.all_gates():
            gate.settled = self.settled

    @torch.no_grad()
    def detach(self) -> dict[str, Any]:
        if not self.settled:
            self.settle()
        for _, path, _ in self.all_gates():
            parametrize.remove_parametrizations(self.model.get_submodule(path), "weight")
        return {
            "pruner": type(self.pruner).__name__,
            "asked": self.target,
            "reached": self.reached,
            "penalty_factor": self.control.factor,
        }


def value_members(site: Site) -> list[Member]:
    """Return the producers without which a unit is zero: all of an MLP's, the values of an attention."""
    if site.units_are_neurons:
        return [*site.producers]
    return [*site.producers[-1:]]
