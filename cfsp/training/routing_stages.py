"""LTE at work: routers in a model, soft while they learn, then hard and frozen."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.machine.environment import is_main
from cfsp.model.modeling_routed import uninstall
from cfsp.model.sites import Site
from cfsp.plans.plan import Route
from cfsp.plans.routes import install_router, layer_paths
from cfsp.training.control import Controller, cubic
from cfsp.training.pruner import Pruning
from cfsp.training.routing_options import RoutingOptions

RAMP = 0.3
"""Fraction of the first stage in which eta rises; lambda does so from here to `READY`."""

READY = 0.8
"""Fraction of the first stage after which the whole share is due."""

BINS, REACH = 8_000, 20.0
"""Bins of the histogram of logits, from -REACH to REACH: narrow, for they bound how exact the share is."""

MEMORY = 0.9
"""What a step leaves of the histograms' earlier content."""

NEAR = 0.2
"""Scores so near to the threshold are undecided."""


SLIGHT = 1e-3
"""A share so near to none or all is none or all: earlier batches leave the histograms only slowly."""


def practically_none(share: float) -> bool:
    """Return whether practically no expert of an MLP is used."""
    return share < SLIGHT


def practically_all(share: float) -> bool:
    """Return whether practically all experts of an MLP are used."""
    return share > 1 - SLIGHT


class RoutingStages(Pruning):
    """A router per site. `target` is the share of units that a token does not use, over all sites.

    initial: site name -> weights of its router at the beginning; others are random.
    """

    def __init__(
        self,
        pruner: RoutingOptions,
        model: PreTrainedModel,
        sites: Sequence[Site],
        target: float,
        initial: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.pruner, self.model, self.sites, self.target = pruner, model, sites, target
        self.control = Controller(target, pruner.gain, pruner.most / pruner.efficiency)
        self.stage, self.settled, self.shown = 0.0, False, None
        self.line = math.log(pruner.threshold / (1 - pruner.threshold))
        self.offset = 0.0  # added to all biases, so that logits - offset have the histogram
        self.mlps = {site.name: install_router(self.route(site), site, model) for site in sites}
        for name, routed in self.mlps.items():
            routed.router.float()
            nn.init.normal_(routed.router.last.weight, std=routed.router.last.in_features**-0.5)
            nn.init.zeros_(routed.router.last.bias)
            routed.router.load_state_dict((initial or {}).get(name, routed.router.state_dict()))
            routed.router.last.bias.data += pruner.start
            routed.soft = True
        self.logits: dict[str, Tensor] = {}
        self.histogram = torch.zeros(len(sites), BINS, dtype=torch.float64)  # of each MLP's logits
        self.uses = {name: torch.zeros(one.router.last.out_features) for name, one in self.mlps.items()}
        self.handles = [model.register_forward_pre_hook(self.keep_mask, with_kwargs=True)]
        for name, one in self.mlps.items():
            self.handles.append(one.router.last.register_forward_hook(self.keep_logits(name)))

    def route(self, site: Site, order: Tensor | None = None) -> Route:
        """Return the route of a site, without weights."""
        producers, _ = layer_paths(site)
        member, pruner = next(one for one in site.producers if one.module == producers[0]), self.pruner
        weight = self.model.get_submodule(member.module).weight
        assert isinstance(weight, Tensor), "a linear layer has one"
        options = {"inputs": weight.shape[1 - member.dim], "experts": site.units // pruner.expert_size}
        router = {"class": "LearnedRouter", **options, "size": pruner.expert_size}
        return Route(site.name, site.units, router | {"threshold": pruner.threshold}, pruner.few, order)

    def keep_mask(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Remember which tokens of a batch are padding."""
        mask = kwargs.get("attention_mask")
        self.shown = mask.flatten().bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def keep_logits(self, name: str) -> Callable:
        """Return a hook that remembers the logits of a router."""

        def keep(module: nn.Module, inputs: tuple, logits: Tensor) -> None:
            self.logits[name] = logits.detach()

        return keep

    def real(self, values: Tensor) -> Tensor:
        """Return the rows that are no padding. [rows, experts] -> [fewer rows, experts]"""
        if self.shown is None or len(self.shown) != len(values):
            return values
        return values[self.shown.to(values.device)]

    def routers(self) -> list[nn.Parameter]:
        return [weight for one in self.mlps.values() for weight in one.router.parameters()]

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self.routers(), "weight_decay": 0.0}]

    def rate(self, steps: int) -> float:
        return self.pruner.learning_rate

    def begin_step(self, progress: float) -> None:
        first = 1 - self.pruner.adaptation
        self.stage = min(progress / first, 1.0)
        if progress >= first and not self.settled:
            self.settle()
        elif self.settled:
            self.shift()
        elif self.histogram.any():
            self.control.step(self.mean_closed(), cubic(self.stage, 0.0, 1 - READY), progress)

    def settle(self) -> None:
        """Begin the second stage: hard thresholds, routers that do not learn.

        Raises ValueError if a block would use no expert at all, or all blocks all of theirs.
        """
        self.shift()
        uses = self.shares()
        told = ", ".join(f"{name} {share:.0%}" for name, share in uses.items())
        if any(map(practically_none, uses.values())) or all(map(practically_all, uses.values())):
            raise ValueError(
                f"routers collapsed (experts in use: {told}); expected a smaller "
                "schedule.pruner.efficiency or most, a larger separability, or more steps"
            )
        if is_main() and (full := [name for name, share in uses.items() if practically_all(share)]):
            print(f"cfsp: routing: every token uses all experts of {', '.join(full)}", file=sys.stderr)
        self.harden()

    def shares(self) -> dict[str, float]:
        """Return the share of each MLP's experts that are above the threshold, on the last batches."""
        above = self.histogram[:, self.line_of(self.pruner.threshold) :].sum(1)
        found = above / self.histogram.sum(1).clamp_min(1e-12)
        return dict(zip(self.mlps, found.tolist(), strict=True))

    def harden(self) -> None:
        self.settled = True
        for routed in self.mlps.values():
            routed.soft = False
            routed.router.requires_grad_(False)

    @torch.no_grad()
    def shift(self) -> None:
        """Shift all biases so that the asked share of the last batches' scores is above the threshold."""
        if not self.histogram.any():
            return
        below = self.histogram.sum(0).cumsum(0) / self.histogram.sum()
        place = int((below <= self.target).sum())
        offset = self.line - (place / BINS * 2 - 1) * REACH
        for routed in self.mlps.values():
            routed.router.last.bias += offset - self.offset
        self.offset = offset

    def penalty(self) -> Tensor:
        self.count()
        if self.settled:
            return torch.zeros((), device=self.model.device)
        pruner, terms = self.pruner, []
        eta = pruner.efficiency * self.control.factor * min(self.stage / RAMP, 1.0)
        separability = pruner.separability * min(max(self.stage - RAMP, 0.0) / (READY - RAMP), 1.0)
        for routed in self.mlps.values():
            assert routed.scores is not None, "the loss was computed with these routers"
            scores = self.real(routed.scores)
            apart = ((scores - pruner.threshold).square() + pruner.guard).reciprocal()
            terms.append(eta * scores.square().mean() + separability * apart.mean())
        return torch.stack(terms).mean()

    @torch.no_grad()
    def count(self) -> None:
        """Take the last batch's logits into the histograms."""
        self.histogram *= MEMORY
        for place, (name, routed) in enumerate(self.mlps.items()):
            logits = self.logits[name]
            raw = self.real(logits).float()
            used = (raw > self.line).float().mean(0).cpu()
            self.uses[name] = MEMORY * self.uses[name] + (1 - MEMORY) * used
            raw = (raw - self.offset).clamp(-REACH, REACH - 1e-3).flatten().cpu()
            found = torch.histc(raw, BINS, -REACH, REACH).double()
            self.histogram[place] += found * routed.width / found.sum()

    def mean_closed(self) -> float:
        """Return 1 - the mean score on the last batches, a smooth measure of what is not used."""
        middles = (torch.arange(BINS) + 0.5) / BINS * 2 * REACH - REACH + self.offset
        return 1 - float((self.histogram.sum(0) * torch.sigmoid(middles)).sum() / self.histogram.sum())

    def removed(self) -> float:
        if not self.histogram.any():
            return 0.0
        return float(self.histogram[:, : self.line_of(self.pruner.threshold)].sum() / self.histogram.sum())

    def decided(self) -> dict[str, tuple[int, ...]]:
        return {site.name: tuple(range(site.units)) for site in self.sites}

    @torch.no_grad()
    def routes(self) -> list[Route]:
        """Return the routes, with the weights of the routers.

        Experts are in the order of their use: those that every token uses lie together, and are one slice.
        """
        found = []
        for site in self.sites:
            size, experts = (
                self.pruner.expert_size,
                self.uses[site.name].argsort(descending=True, stable=True),
            )
            order = (experts[:, None] * size + torch.arange(size)).flatten()
            last = self.mlps[site.name].router.last
            weights = {"last.weight": last.weight.detach().cpu()[experts]}
            weights["last.bias"] = last.bias.detach().cpu()[experts]
            route = self.route(site, order)
            found.append(Route(route.site, route.units, route.router, route.few, order, weights))
        return found

    def state(self) -> dict[str, Tensor]:
        control = self.control
        numbers = [control.error, control.integral, control.progress, float(self.settled), self.offset]
        found = {"control": torch.tensor(numbers, dtype=torch.float64), "histogram": self.histogram.clone()}
        return found | {f"uses.{name}": uses for name, uses in self.uses.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        control, numbers = self.control, state["control"].tolist()
        control.error, control.integral, control.progress, settled, self.offset = numbers
        self.histogram = state["histogram"].clone()
        self.uses = {name: state[f"uses.{name}"] for name in self.uses}
        if settled:
            self.harden()

    def detach(self) -> dict[str, Any]:
        for handle in self.handles:
            handle.remove()
        uninstall(self.model)
        line = [self.line_of(self.pruner.threshold + side) for side in (-NEAR, NEAR)]
        undecided = float(self.histogram[:, line[0] : line[1]].sum() / self.histogram.sum())
        if is_main() and (
            unused := [name for name, share in self.shares().items() if practically_none(share)]
        ):
            print(f"cfsp: routing: no token uses an expert of {', '.join(unused)}", file=sys.stderr)
        return {
            "pruner": "Routing",
            "asked": self.target,
            "reached": self.removed(),
            "undecided": undecided,
            "penalty_factor": self.control.factor,
            "active": self.shares(),
        }

    def line_of(self, score: float) -> int:
        """Return the bin of a score."""
        logit = math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
        return round(min(max((logit - self.offset + REACH) / (2 * REACH), 0.0), 1.0) * BINS)
