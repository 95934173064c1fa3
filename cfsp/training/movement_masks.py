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
from cfsp.training.learned_gates import Gate, TileGate, UnitGate, lowest_kept
from cfsp.training.movement_options import MovementOptions
from cfsp.training.pruner import Decide, Pruning

SLOPE = 4.0
"""How sharply a score counts as closed for the controller: near its threshold it counts in part."""


def scored_layers(site: Site) -> list[str]:
    """Return the paths of a site's linear layers."""
    return [*dict.fromkeys(member.module for member in site.members)]


class MovementPruning(Pruning):
    """One gate per site, or one per weight of a site with tiles."""

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
        pruner = self.pruner
        self.due = cubic(progress, pruner.warmup, pruner.cooldown)
        if self.settled or self.due == 0:
            return
        if self.due == 1:
            self.settle()
        elif self.kind.steered:
            for _, _, gate in self.all_gates():
                gate.threshold.fill_(pruner.threshold_at(self.due))
            self.control.step(self.nearly_closed(), self.due, progress)
            if self.closed() > self.target * self.due:  # scores fall together, and many at once
                self.close(self.target * self.due)
        else:
            self.close(self.target * self.due)

    def close(self, share: float) -> None:
        """Set the thresholds so that this share is masked: of each gate's scores, or of all parameters."""
        found = [*self.all_gates()]
        if not self.kind.learned:
            for _, path, gate in found:
                original = self.model.get_parameter(f"{path}.parametrizations.weight.original")
                gate.scores.copy_(gate.mean_of_weights(original.abs()))
        if self.kind.per_gate:
            for _, _, gate in found:
                gate.threshold.copy_(lowest_kept(gate.scores, share))
            return
        prices = [self.price(site, gate) for site, _, gate in found]
        worths = [self.worth(site, gate).flatten() for site, _, gate in found]
        worth = torch.cat(worths)
        weights = torch.cat([torch.full_like(one, price) for one, price in zip(worths, prices, strict=True)])
        order = worth.argsort(stable=True)
        gone = int((weights[order].double().cumsum(0) <= share * weights.double().sum() + 1e-6).sum())
        least = worth[order[gone - 1]] if gone else worth.new_tensor(-torch.inf)
        for (_, _, gate), one in zip(found, worths, strict=True):
            closed = one <= least
            gate.threshold.fill_(gate.scores.flatten()[closed].max() if closed.any() else -torch.inf)

    def price(self, site: Site, gate: Gate) -> float:
        """Return the number of parameters that one score stands for."""
        return float(gate.tile**2) if isinstance(gate, TileGate) else float(self.cost[site.name])

    def worth(self, site: Site, gate: Gate) -> Tensor:
        """Return what gates are compared by: their scores, or openness per parameter. [scores]"""
        if self.kind.per_parameter:
            return gate.rule.openness(gate.scores) / self.price(site, gate)
        return gate.scores.detach()

    def nearly_closed(self) -> float:
        """Return the share of the parameters whose scores are below their threshold, smoothed around it."""
        closed = whole = 0.0
        for site, _, gate in self.all_gates():
            price = self.price(site, gate)
            closed = closed + price * torch.sigmoid(SLOPE * (gate.threshold - gate.scores)).sum()
            whole += price * gate.scores.numel()
        return float(closed) / whole

    def closed(self) -> float:
        """Return the share of the parameters whose scores are at or below their threshold."""
        gone = whole = 0.0
        for site, _, gate in self.all_gates():
            price = self.price(site, gate)
            gone = gone + price * (gate.scores <= gate.threshold).sum()
            whole += price * gate.scores.numel()
        return float(gone) / whole

    def settle(self) -> None:
        """Decide for good: as many units are closed as are asked for, by the scores, and no others.

        First thresholds that close at least so many; they say which tiles inside kept units stay closed.
        """
        self.reached, low, high = self.closed(), 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            self.close(middle)
            low, high = (low, middle) if self.removed() >= self.target else (middle, high)
        self.close(high)
        keep, dead = (
            self.decide(self.scores()),
            {site.name: self.open_share(site) == 0 for site in self.sites},
        )
        for site in self.sites:
            kept = torch.zeros(site.units, dtype=torch.bool)
            kept[[*keep[site.name]]] = True
            for gate in self.gates[site.name].values():
                gate.settle()
            again = (kept & dead[site.name].cpu()).nonzero().flatten().tolist()
            gates, consumer = self.gates[site.name], site.consumers[0]
            for member in self.read(site) if again else ():
                gates[member.module].reopen(member, again)
            gates[consumer.module].channels[consumer.places((~kept).nonzero().flatten().tolist())] = 0
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
        gone = sum(float((self.open_share(site) == 0).sum()) * self.cost[site.name] for site in self.sites)
        return gone / self.total

    def open_share(self, site: Site) -> Tensor:
        """Return the open part of each unit; 0 if all that it reads or gives is masked. [units]"""
        if self.settled:
            consumer = site.consumers[0]
            channels = self.gates[site.name][consumer.module].channels
            return channels[consumer.places(range(site.units))].view(site.units, -1).amax(1)
        return self.unit_means(site, lambda gate: (gate.scores > gate.threshold).float())

    def unit_means(self, site: Site, value: Callable[[Gate], Tensor]) -> Tensor:
        """Return the mean of the gates' values over each unit's outputs, times that of its inputs. [units]"""
        found = torch.ones(site.units, device=self.model.device)
        for member in self.read(site):
            gate = self.gates[site.name][member.module]
            found = found * gate.mean_of_units(value(gate), member, site.units)
        return found

    def read(self, site: Site) -> list[Member]:
        """Return the members without whose weights a unit is zero: its outputs, and with tiles its values."""
        return [site.consumers[0], *(value_members(site) if self.pruner.tile_of(site) else [])]

    def scores(self) -> dict[str, Tensor]:
        """Return site name -> score of each unit [units], as masks compare them; closed ones come last."""
        found = {
            site.name: sum(
                (
                    gate.mean_of_units(self.worth(site, gate), member, site.units)
                    for member in self.read(site)
                    for gate in [self.gates[site.name][member.module]]
                ),
                torch.zeros(site.units, device=self.model.device),
            )
            / len(self.read(site))
            for site in self.sites
        }
        most = 2 * max(float(score.abs().max()) for score in found.values()) + 1
        return {site.name: found[site.name] - most * (self.open_share(site) == 0) for site in self.sites}

    @torch.no_grad()
    def decided(self) -> dict[str, tuple[int, ...]]:
        if not self.settled:
            self.settle()
        return {site.name: tuple(self.open_share(site).nonzero().flatten().tolist()) for site in self.sites}

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
