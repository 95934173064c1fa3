"""Movement pruning: units and tiles that move towards zero while the model trains are masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.sites import Member, Site
from cfsp.model.views import unit_cost
from cfsp.training.control import Controller, cubic
from cfsp.training.gates import RULES, Gate, TileGate, UnitGate
from cfsp.training.pruner import Pruner, Pruning

KINDS = ("mlp", "attention")
"""Kinds of sites whose units can be scored so."""

MASKS = ("top", "budget", "hard", "soft", "hard_concrete", "magnitude")


@dataclass(frozen=True, kw_only=True)
class Movement(Pruner):
    """Scores on units (arXiv:2005.07683) or on tiles of weights (arXiv:2109.04838), learned with the weights.

    mask: how scores S become a mask, t being the threshold.
        top: the highest S of each gate (movement pruning).
        budget: the highest S of all gates together, for what a unit costs.
        hard: S > t. soft: sigmoid(S) > t (soft movement pruning, and the paper on blocks).
        hard_concrete: a stochastic gate (arXiv:1712.01312).
        magnitude: the largest mean |W| of each gate; nothing is learned.
    tiles: kind of site -> side of the square tiles on all of its weights; 1 is plain movement pruning. A kind
        that is not named has one score for each unit.
    penalties: kind of site -> what its mean open share weighs in the loss (lambda). One controller multiplies
        all of them until the share that is asked is met; `top`, `budget` and `magnitude` need none.
    threshold: t at the end of the steps.
    warmup, cooldown: shares of the steps before masks begin to close, and after they have.
    learning_rate: of the scores, which have no weight decay. gain: of the controller.

    Differs from the released code: a neuron's score lies on the consumer alone, which halves its gradient and
    changes nothing for AdamW. A head goes if its values or its outputs are masked; the release asks for
    queries, keys and values, of which the first two change what a head gives.
    """

    mask: str = "soft"
    tiles: Mapping[str, int] = field(default_factory=dict)
    penalties: Mapping[str, float] = field(default_factory=lambda: {"mlp": 1.0, "attention": 1.0})
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
                f"warmup={self.warmup:g} and cooldown={self.cooldown:g} are shares of the steps; "
                "expected a sum below 1"
            )

    def check(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.kind not in KINDS:
                raise ValueError(
                    f"movement pruning scores {' and '.join(KINDS)}; leave {site.kind!r} out of sites"
                )
            tile = self.tiles.get(site.kind)
            for path in modules_of(site) if tile else ():
                shape = tuple(model.get_submodule(path).weight.shape)
                if any(side % tile for side in shape):
                    raise ValueError(
                        f"tiles.{site.kind}={tile}: {path} is {shape[0]} x {shape[1]}; expected a tile that "
                        "divides both sides"
                    )

    def attach(self, model: PreTrainedModel, sites: Sequence[Site], target: float) -> MovementPruning:
        return MovementPruning(self, model, sites, target)


def modules_of(site: Site) -> list[str]:
    """Paths of the linear layers of a site."""
    return [*dict.fromkeys(member.module for member in site.members)]


class MovementPruning(Pruning):
    """Movement pruning at work: one gate for each site, or for each weight of a site with tiles."""

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
        """Attach the gates of one site. -> module -> its gate"""
        tile, start = self.pruner.tiles.get(site.kind), 2.0 if self.rule == "hard_concrete" else 0.0
        gates: dict[str, Gate] = {}
        for path in modules_of(site) if tile else [site.consumers[0].module]:
            module = self.model.get_submodule(path)
            if tile:
                gates[path] = TileGate(tile, self.rule, start, module.weight)
            else:
                gates[path] = UnitGate(site.consumers[0], site.units, self.rule, start, module.weight)
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
        """Score every gate by the mean magnitude of what it stands for."""
        for site in self.sites:
            for path, gate in self.gates[site.name].items():
                weight = self.model.get_submodule(path).parametrizations.weight.original.abs()
                gate.scores.copy_(gathered(gate, weight))

    def close_by_budget(self) -> None:
        """Give every gate the threshold at which all of them together keep what is due."""
        total = sum(site.units * self.cost[site.name] for site in self.sites)
        scores, prices = [], []
        for site, gate in self.all_gates:
            price = self.cost[site.name] * site.units / gate.scores.numel() / len(self.gates[site.name])
            scores.append(gate.scores.flatten() / price)
            prices.append(torch.full_like(scores[-1], price))
        score, price = torch.cat(scores), torch.cat(prices)
        order = score.argsort()
        gone = price[order].double().cumsum(0) <= self.target * self.due * total
        last = int(gone.sum())
        cut = score[order[last - 1]] if last else score.new_tensor(-torch.inf)
        for site, gate in self.all_gates:
            share = self.cost[site.name] * site.units / gate.scores.numel() / len(self.gates[site.name])
            gate.threshold.fill_(cut * share)

    def penalty(self) -> Tensor:
        device = self.model.device
        if not self.steered:
            return torch.zeros((), device=device)
        total = torch.zeros((), device=device)
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
        """What a gate's scores say that its units are worth; of the scores' shape."""
        return gate.rule.size(gate.scores) if self.learned else gate.scores

    def unit_masks(self, site: Site) -> Tensor:
        """How open each unit is: 0 where all that it writes, or all that reads it, is masked. [units]"""
        return self.unit_means(site, lambda gate: (gate.open() > 0).float())

    def unit_means(self, site: Site, value: Any) -> Tensor:
        """The mean of a gate's values over each unit's places: of the consumer, times that of what it reads.

        -> [units]
        """
        gates = self.gates[site.name]
        consumer = site.consumers[0]
        found = unit_mean(gates[consumer.module], value, consumer, site.units)
        if isinstance(gates[consumer.module], TileGate):
            for member in value_members(site):
                found = found * unit_mean(gates[member.module], value, member, site.units)
        return found

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        found, closed = {}, {}
        for site in self.sites:
            score = self.unit_means(
                site, lambda gate: gate.rule.size(gate.scores) if self.learned else gate.scores
            )
            price = self.cost[site.name] if self.pruner.mask == "budget" else 1
            found[site.name], closed[site.name] = score / price, self.unit_masks(site) == 0
        # A unit that is closed goes before any that is open, whatever their scores.
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
    """Producers without which a unit gives nothing: all of an MLP's, the values of an attention."""
    if site.kind == "mlp":
        return [*site.producers]
    span = site.consumers[0].span
    return [member for member in site.producers[-1:] if member.span <= span]


def unit_mean(gate: Gate, value: Any, member: Member, units: int) -> Tensor:
    """The mean of a gate's values over the places of each unit on a member's axis. [units]"""
    values = value(gate)
    if isinstance(gate, UnitGate):
        return values
    along = values.movedim(member.dim, 0).mean(1).repeat_interleave(gate.tile)  # [axis]
    places = member.places(range(units)).to(along.device)
    return along[places].view(units, -1).mean(1)


def gathered(gate: Gate, weight: Tensor) -> Tensor:
    """The mean of a weight's values over what each score stands for; of the scores' shape."""
    if isinstance(gate, TileGate):
        rows, columns = gate.scores.shape
        return weight.view(rows, gate.tile, columns, gate.tile).mean((1, 3))
    along = weight.movedim(gate.dim, 0).mean(1)
    found = torch.zeros_like(gate.scores, dtype=weight.dtype)
    mine = gate.places >= 0
    found.index_add_(0, gate.places[mine], along[mine])
    return found / gate.span


def lowest_kept(scores: Tensor, share: float) -> Tensor:
    """A threshold above which all but this share of the scores are. scalar"""
    gone = int(share * scores.numel())
    if not gone:
        return scores.new_tensor(-torch.inf)
    return scores.detach().flatten().kthvalue(gone).values
