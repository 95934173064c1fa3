"""Movement pruning at work: gates in a model, opened and closed while it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cfsp.model.sites import Member, Site
from cfsp.model.views import unit_cost
from cfsp.model.weights import weight_of
from cfsp.training.control import Controller, cubic
from cfsp.training.learned_gates import Gate, TileGate, UnitGate, lowest
from cfsp.training.movement_options import MovementOptions
from cfsp.training.pruner import Decide, Pruning


def scored_layers(site: Site) -> list[str]:
    """Return the paths of a site's linear layers."""
    return [*dict.fromkeys(member.module for member in site.members)]


class MovementPruning(Pruning):
    """One gate per site, or one per weight of a site with tiles.

    The masks of a step are the decision for the share that is due: the allocator chooses the units, by the
    scores, and of the tiles those with the lowest scores go. With thresholds, only what is below them goes,
    so less than the due share may be closed. What is decided in the end is therefore what trained before.
    """

    def __init__(
        self,
        pruner: MovementOptions,
        model: PreTrainedModel,
        sites: Sequence[Site],
        target: float,
        decide: Decide,
    ) -> None:
        self.pruner, self.model, self.sites, self.target, self.decide = pruner, model, sites, target, decide
        self.kind = pruner.kind
        self.cost = {site.name: unit_cost(model, site) for site in sites}
        self.total = sum(site.units * self.cost[site.name] for site in sites)
        self.control = Controller(target, pruner.gain)
        self.due, self.settled, self.reached = 0.0, False, 0.0
        self.gates = {site.name: self.gates_of(site) for site in sites}

    def gates_of(self, site: Site) -> dict[str, Gate]:
        """Put the gates of one site into the model. Returns module -> its gate."""
        rule, start = self.kind.rule, self.kind.start
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

    def groups(self) -> list[dict[str, Any]]:
        if not self.kind.learned:
            return []
        return [{"params": [gate.scores for _, _, gate in self.all_gates()], "weight_decay": 0.0}]

    def rate(self, steps: int) -> float:
        return self.pruner.rate(steps)

    @torch.no_grad()
    def begin_step(self, progress: float) -> None:
        self.due = cubic(progress, self.pruner.warmup, self.pruner.cooldown)
        if self.settled or self.due == 0:
            return
        if self.due == 1:
            self.settle()
            return
        least = self.pruner.threshold_at(self.due) if self.kind.steered else math.inf
        self.close(least)
        self.reached = self.removed()
        if self.kind.steered:
            self.control.step(self.reached, self.due, progress)

    def close(self, least: float) -> None:
        """Set the masks: the due share is closed, but no unit and no tile whose score is above `least`."""
        if not self.kind.learned:
            for _, path, gate in self.all_gates():
                original = self.model.get_parameter(f"{path}.parametrizations.weight.original")
                gate.scores.copy_(gate.mean_of_weights(original.abs()))
        self.close_tiles(least)
        keep, scores = self.decide(self.scores(), self.due), self.unit_scores()
        for site in self.sites:
            consumer, score = site.consumers[0], scores[site.name]
            units = torch.ones(site.units, dtype=torch.bool, device=score.device)
            units[[*keep[site.name]]] = False
            self.gates[site.name][consumer.module].close(consumer, units & (score <= least))
            if self.pruner.tile_of(site):
                self.reopen(site, keep[site.name])

    def close_tiles(self, least: float) -> None:
        """Close the due share of tiles: of each weight's, or of all weights' together."""
        found = [gate for _, _, gate in self.all_gates() if isinstance(gate, TileGate)]
        for gates in [[gate] for gate in found] if self.kind.per_gate else [found] if found else []:
            scores = torch.cat([gate.scores.detach().flatten() for gate in gates])
            closed = lowest(scores, self.target * self.due, least)
            parts = closed.split([gate.scores.numel() for gate in gates])
            for gate, part in zip(gates, parts, strict=True):
                gate.mask.copy_(~part.view_as(gate.mask))

    def reopen(self, site: Site, keep: Sequence[int]) -> None:
        """Open the tiles of units that stay, although all their tiles are closed."""
        dead = self.open_tiles(site) == 0
        again = [unit for unit in keep if dead[unit]] if dead.any() else []
        for member in self.read(site) if again else ():
            gate = self.gates[site.name][member.module]
            assert isinstance(gate, TileGate), "only tiles close without their unit"
            gate.reopen(member, again)

    def settle(self) -> None:
        """Decide for good: as many units are closed as are asked for, by the scores, and no others."""
        self.close(math.inf)
        for _, _, gate in self.all_gates():
            gate.settle()
        self.settled = True

    def penalty(self) -> Tensor:
        total = torch.zeros((), device=self.model.device)
        if not self.kind.steered or self.settled or self.due == 0:
            return total
        kinds = [*dict.fromkeys(site.kind for site in self.sites)]
        for kind in kinds:
            found = [gate for site, _, gate in self.all_gates() if site.kind == kind]
            openness = torch.stack([gate.rule.openness(gate.scores).mean() for gate in found]).mean()
            total = total + self.pruner.penalty_of(kind) / len(kinds) * openness
        return self.due * self.control.factor * total

    @torch.no_grad()
    def removed(self) -> float:
        gone = sum(float((~self.is_open(site)).sum()) * self.cost[site.name] for site in self.sites)
        return gone / self.total

    def is_open(self, site: Site) -> Tensor:
        """Return which units have an effect. [units], bool"""
        consumer = site.consumers[0]
        gate = self.gates[site.name][consumer.module]
        if not isinstance(gate, TileGate):
            return gate.mask > 0
        channels = gate.channels[consumer.places(range(site.units))].view(site.units, -1).amax(1)
        return (channels > 0) & (self.open_tiles(site) > 0)

    def open_tiles(self, site: Site) -> Tensor:
        """Return the open part of each unit's tiles; 0 if all that it reads or gives is masked. [units]"""
        found = torch.ones(site.units, device=self.model.device)
        for member in self.read(site):
            gate = self.gates[site.name][member.module]
            found = found * gate.mean_of_units((gate.mask > 0).float(), member, site.units)
        return found

    def read(self, site: Site) -> list[Member]:
        """Return the members without whose weights a unit is zero: its outputs, and with tiles its values."""
        return [site.consumers[0], *(value_members(site) if self.pruner.tile_of(site) else [])]

    def unit_scores(self) -> dict[str, Tensor]:
        """Return site name -> mean score of each unit's gates. [units]"""
        found = {}
        for site in self.sites:
            parts = [
                self.gates[site.name][member.module].mean_of_units(
                    self.gates[site.name][member.module].scores.detach(), member, site.units
                )
                for member in self.read(site)
            ]
            found[site.name] = torch.stack(parts).mean(0)
        return found

    def scores(self) -> dict[str, Tensor]:
        """Return site name -> score of each unit. Units whose tiles are all closed come last. [units]"""
        found = self.unit_scores()
        most = 2 * max(float(score.abs().max()) for score in found.values()) + 1
        for site in self.sites:
            if self.pruner.tile_of(site):
                found[site.name] = found[site.name] - most * (self.open_tiles(site) == 0)
        return found

    @torch.no_grad()
    def decided(self) -> dict[str, tuple[int, ...]]:
        if not self.settled:
            self.due = 1.0
            self.settle()
        return {site.name: tuple(self.is_open(site).nonzero().flatten().tolist()) for site in self.sites}

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
