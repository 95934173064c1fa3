"""Movement pruning: mask units and tiles whose weights move towards zero while the model is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.sites import Member, Site
from cfsp.model.views import unit_cost
from cfsp.model.weights import weight_of
from cfsp.training.control import Controller, cubic
from cfsp.training.learned_gates import RULES, Gate, TileGate, UnitGate, original_weight
from cfsp.training.pruner import Pruner, Pruning

KINDS = ("mlp", "attention")
"""Kinds of sites that it can score."""

MASKS = ("top", "budget", "hard", "soft", "hard_concrete", "magnitude")


@dataclass(frozen=True, kw_only=True)
class Movement(Pruner):
    """Scores on units (arXiv:2005.07683) or on tiles of weights (arXiv:2109.04838), trained with the weights.

    mask: how scores S become a mask. t is the threshold.
        top: keep the highest S of each gate (movement pruning).
        budget: keep the highest S per parameter, over all gates.
        hard: S > t. soft: sigmoid(S) > t (soft movement pruning, and the block pruning paper).
        hard_concrete: a stochastic gate (arXiv:1712.01312).
        magnitude: keep the largest mean |W| of each gate. The scores are not trained.
    tiles: kind of site -> side of the square tiles on all of its weights; 1 is plain movement pruning. A kind
        that is not named has one score for each unit.
    penalties: kind of site -> weight in the loss of the mean opening of its gates (lambda); 1 for a kind that
        is not named. A controller multiplies all of them until the requested fraction is removed. `top`,
        `budget` and `magnitude` have no penalty.
    threshold: t at the end of the training.
    warmup, cooldown: fractions of the steps before masks begin to close, and after they have closed.
    learning_rate: of the scores, which have no weight decay. gain: of the controller.

    Differs from the released code: a neuron's score is on the consumer only. This halves its gradient, which
    changes nothing for AdamW. A head is removed if its values or its outputs are masked. The release
    requires masked queries, keys and values; masked queries and keys change a head's output.
    """

    mask: str = "soft"
    tiles: Mapping[str, int] = field(default_factory=dict)
    penalties: Mapping[str, float] = field(default_factory=dict)
    threshold: float = 0.1
    warmup: float = 0.1
    cooldown: float = 0.4
    learning_rate: float = 1e-2
    gain: float = 10.0

    def __post_init__(self) -> None:
        check_choice("mask", self.mask, MASKS)
        for kind, tile in self.tiles.items():
            check_choice("tiles", kind, KINDS)
            check_integer(f"tiles.{kind}", tile, least=1)
        for kind, weight in self.penalties.items():
            check_choice("penalties", kind, KINDS)
            check_number(f"penalties.{kind}", weight, least=0)
        for name in ("threshold", "warmup", "cooldown", "learning_rate", "gain"):
            check_number(name, getattr(self, name), least=0)
        if self.warmup + self.cooldown >= 1:
            raise ValueError(
                f"warmup={self.warmup:g} and cooldown={self.cooldown:g} are fractions of the steps; "
                "expected a sum below 1"
            )

    def check(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.kind not in KINDS:
                raise ValueError(
                    f"movement pruning scores {' and '.join(KINDS)}; leave {site.kind!r} out of sites"
                )
            if site.kind in self.tiles:
                self.check_tiles(model, site)

    def check_tiles(self, model: PreTrainedModel, site: Site) -> None:
        """Raise ValueError unless the tiles of this kind of site divide its weights."""
        tile = self.tiles[site.kind]
        for path in layers_of_site(site):
            rows, columns = weight_of(model.get_submodule(path)).shape
            if rows % tile or columns % tile:
                raise ValueError(
                    f"tiles.{site.kind}={tile}: {path} is {rows} x {columns}; expected a tile that divides "
                    "both sides"
                )

    def attach(self, model: PreTrainedModel, sites: Sequence[Site], target: float) -> MovementPruning:
        return MovementPruning(self, model, sites, target)


def layers_of_site(site: Site) -> list[str]:
    """Return the paths of a site's linear layers."""
    return [*dict.fromkeys(member.module for member in site.members)]


class MovementPruning(Pruning):
    """Movement pruning of one model: a gate for each site, or for each weight of a site with tiles."""

    def __init__(
        self, pruner: Movement, model: PreTrainedModel, sites: Sequence[Site], target: float
    ) -> None:
        self.pruner, self.model, self.sites, self.target = pruner, model, sites, target
        self.rule = pruner.mask if pruner.mask in RULES else "hard"
        self.learned = pruner.mask != "magnitude"
        self.steered = pruner.mask in ("hard", "soft", "hard_concrete")
        self.cost = {site.name: unit_cost(model, site) for site in sites}
        self.control = Controller(target, pruner.gain)
        self.due = 0.0
        self.gates = {site.name: self.gates_of(site) for site in sites}

    def gates_of(self, site: Site) -> dict[str, Gate]:
        """Attach the gates of one site. -> path of a layer -> its gate"""
        tile, start = self.pruner.tiles.get(site.kind), 2.0 if self.rule == "hard_concrete" else 0.0
        gates: dict[str, Gate] = {}
        for path in layers_of_site(site) if tile else [site.consumers[0].module]:
            module = self.model.get_submodule(path)
            weight = weight_of(module)
            if tile:
                gates[path] = TileGate(tile, self.rule, start, weight)
            else:
                gates[path] = UnitGate(site.consumers[0], site.units, self.rule, start, weight)
            gates[path].scores.requires_grad_(self.learned)
            parametrize.register_parametrization(module, "weight", gates[path])
        return gates

    @property
    def all_gates(self) -> list[tuple[Site, Gate]]:
        return [(site, gate) for site in self.sites for gate in self.gates[site.name].values()]

    def groups(self) -> list[dict[str, Any]]:
        scores = [gate.scores for _, gate in self.all_gates] if self.learned else []
        return [{"params": scores, "lr": self.pruner.learning_rate, "weight_decay": 0.0}] if scores else []

    @torch.no_grad()
    def begin_step(self, progress: float) -> None:
        self.due = cubic(progress, self.pruner.warmup, self.pruner.cooldown)
        if self.steered:
            low = -self.pruner.threshold if self.pruner.mask == "hard" else 0.0
            value = low + (self.pruner.threshold - low) * self.due
            for _, gate in self.all_gates:
                gate.threshold.fill_(value)
            if progress >= self.pruner.warmup:
                self.control.step(self.removed(), self.due, progress)
            return
        if not self.learned:
            self.weigh()
        if self.pruner.mask == "budget":
            self.close_by_budget()
        else:
            for _, gate in self.all_gates:
                gate.threshold.fill_(lowest_kept(gate.scores, self.target * self.due))

    def weigh(self) -> None:
        """Set every score to the mean |W| of its elements."""
        for site in self.sites:
            for path, gate in self.gates[site.name].items():
                weight = original_weight(self.model.get_submodule(path))
                gate.scores.copy_(gate.per_score(weight.abs()))

    def close_by_budget(self) -> None:
        """Set the thresholds so that all gates together remove what is due."""
        total = sum(site.units * self.cost[site.name] for site in self.sites)
        priced = [(gate, self.price(site, gate)) for site, gate in self.all_gates]
        score = torch.cat([gate.scores.flatten() / price for gate, price in priced])
        price = torch.cat([torch.full_like(gate.scores.flatten(), price) for gate, price in priced])
        order = score.argsort()
        gone = price[order].double().cumsum(0) <= self.target * self.due * total
        last = int(gone.sum())
        cut = score[order[last - 1]] if last else score.new_tensor(-torch.inf)
        for gate, own in priced:
            gate.threshold.fill_(cut * own)

    def price(self, site: Site, gate: Gate) -> float:
        """Return the number of parameters for each score of a gate."""
        return self.cost[site.name] * site.units / gate.scores.numel() / len(self.gates[site.name])

    def penalty(self) -> Tensor:
        total = torch.zeros((), device=self.model.device)
        if not self.steered:
            return total
        kinds = dict.fromkeys(site.kind for site in self.sites)
        for kind in kinds:
            sizes = [gate.rule.size(gate.scores).mean() for site, gate in self.all_gates if site.kind == kind]
            total = total + self.pruner.penalties.get(kind, 1.0) / len(kinds) * torch.stack(sizes).mean()
        return self.due * self.control.factor * total

    @torch.no_grad()
    def removed(self) -> float:
        gone = sum(float((self.unit_masks(site) == 0).sum()) * self.cost[site.name] for site in self.sites)
        return gone / sum(site.units * self.cost[site.name] for site in self.sites)

    def worth(self, gate: Gate) -> Tensor:
        """Return the value of a gate's scores for ranking. [the scores' axes]"""
        return gate.rule.size(gate.scores) if self.learned else gate.scores

    def unit_masks(self, site: Site) -> Tensor:
        """Return how open each unit is: 0 if all that it writes, or all that reads it, is masked. [units]"""
        return self.unit_means(site, lambda gate: (gate.open() > 0).float())

    def unit_means(self, site: Site, value: Callable[[Gate], Tensor]) -> Tensor:
        """Return the mean of a gate's values over each unit's places. [units]

        With tiles, the means of the consumer and of the weights whose output it reads are multiplied.
        """
        gates, consumer = self.gates[site.name], site.consumers[0]
        members = [consumer]
        if isinstance(gates[consumer.module], TileGate):
            members += value_members(site)
        found = torch.ones((), device=self.model.device)
        for member in members:
            gate = gates[member.module]
            found = found * gate.per_unit(value(gate), member, site.units)
        return found

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """Return site name -> the mean worth of each unit. Closed units are below all open ones. [units]"""
        found, closed = {}, {}
        for site in self.sites:
            score = self.unit_means(site, self.worth)
            price = self.cost[site.name] if self.pruner.mask == "budget" else 1
            found[site.name], closed[site.name] = score / price, self.unit_masks(site) == 0
        most = max(float(score.abs().max()) for score in found.values())
        return {name: score - most * closed[name] for name, score in found.items()}

    def state(self) -> dict[str, Tensor]:
        found = {path: gate.scores.detach() for gates in self.gates.values() for path, gate in gates.items()}
        return found | {
            "control": torch.tensor([self.control.error, self.control.integral, self.control.progress])
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        for gates in self.gates.values():
            for path, gate in gates.items():
                gate.scores.copy_(state[path])
        self.control.error, self.control.integral, self.control.progress = state["control"].tolist()

    @torch.no_grad()
    def detach(self) -> dict[str, Any]:
        reached = self.removed()
        self.model.eval()
        for gates in self.gates.values():
            for path in gates:
                parametrize.remove_parametrizations(self.model.get_submodule(path), "weight")
        return {
            "reached": reached,
            "penalty_factor": self.control.factor,
            "mask": self.pruner.mask,
            "tiles": dict(self.pruner.tiles),
        }


def value_members(site: Site) -> list[Member]:
    """Return the producers without which a unit's output is zero: an MLP's, the values of an attention."""
    if site.units_are_neurons:
        return [*site.producers]
    span = site.consumers[0].span
    return [member for member in site.producers[-1:] if member.span <= span]


def lowest_kept(scores: Tensor, share: float) -> Tensor:
    """Return a threshold that all scores exceed, except this fraction of them. []"""
    gone = int(share * scores.numel())
    if not gone:
        return scores.new_tensor(-torch.inf)
    return scores.detach().flatten().kthvalue(gone).values
