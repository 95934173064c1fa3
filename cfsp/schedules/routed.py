"""Routed: schedules after which every token chooses its neurons; nothing is removed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from cfsp.checks import check_choice, check_integer, check_seed
from cfsp.data.examples import Split
from cfsp.machine.environment import is_main
from cfsp.model.sites import Site
from cfsp.plans.grouping import GROUPINGS, check_experts
from cfsp.plans.plan import PrunePlan, Route
from cfsp.plans.routes import check_dense, permute_units
from cfsp.plans.subject import Subject
from cfsp.recovery.distilled_from import with_teacher
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.method import Method
from cfsp.schedules.mlp_samples import group_neurons, predictors, sample_mlps
from cfsp.schedules.route_makers import RouteMaker
from cfsp.schedules.trained import NEAR, TrainedSchedule, check_one_process
from cfsp.training.routing import Routing
from cfsp.training.routing_stages import RoutingStages

ACTIVE = "a share of the units to use, in (0, 1)"


@dataclass(frozen=True, kw_only=True)
class Routes(Schedule):
    """What schedules have in common whose plan holds routes.

    active: share of the MLPs' units that a token uses on average, over all blocks.
    """

    probes = False
    routes = True
    active: Annotated[float, ACTIVE]
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("schedule.seed", self.seed)
        if not 0 < self.active < 1:
            raise ValueError(f"schedule.active={self.active!r}: expected {ACTIVE}")
        if self.size_target is not None:
            raise ValueError(
                f"{self.size_target.wanted.key}: a routed MLP loses no weight; expected no target, and "
                f"sparsity=0 with schedule.active={self.active:g}"
            )
        if self.sparsity:
            raise ValueError(
                f"sparsity={self.sparsity:g}: a routed MLP loses no weight; expected sparsity=0, and "
                f"schedule.active={self.active:g} alone"
            )

    def check(self, sites: Sequence[Site], method: Method) -> None:
        """Raise ValueError if the sites and the method's parts do not work together."""
        if not method.criterion.learned or method.compensation.needs or method.allocator.needs:
            raise ValueError(
                f"schedule {type(self).__name__} chooses units per token, without scores; expected "
                "criterion=learned, allocator=uniform and compensation=none"
            )
        for site in sites:
            if not site.units_are_neurons:
                raise ValueError(f"{site.name}: only neurons can be routed; expected sites=[mlp]")


@dataclass(frozen=True, kw_only=True)
class RoutedOnce(Routes):
    """Makes routers from one pass over calibration batches; the model's weights stay as they are.

    maker: how a router comes about. grouping: which neurons are an expert; see `cfsp.plans.grouping`.
    few: so many rows of input, at most, are computed with the chosen units alone.
    """

    maker: RouteMaker
    grouping: str = "kmeans"
    few: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("grouping", self.grouping, GROUPINGS)
        check_integer("few", self.few, least=1)

    @property
    def made_with(self) -> tuple[object, ...]:
        return (self.maker,)

    def prepare(self, subject: Subject, method: Method) -> None:
        self.check(subject.sites, method)
        check_dense(subject.model, subject.sites, "routed")
        size = self.maker.expert_size
        shares = {}
        for site in subject.sites:
            check_experts(site.units, size, site.name)
            shares[site.name] = self.maker.top(site.units, self.active) * size / site.units
        far = {name: share for name, share in shares.items() if abs(share - self.active) > NEAR}
        for name, share in far.items():
            told = f"whole experts make {share:.1%} of {name} active, not {self.active:.1%}"
            hint = "expected a smaller schedule.maker.expert_size"
            if not 0.5 < share / self.active < 2:
                raise ValueError(f"schedule.active={self.active:g}: {told}; {hint}")
            if is_main():
                print(f"cfsp: routing: {told}; {hint}", file=sys.stderr)
            break

    @torch.no_grad()
    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        model, sites, maker, batches = subject.model, subject.sites, self.maker, list(batches)
        orders = group_neurons(model, sites, batches, self.grouping, maker.expert_size, self.seed)
        routes = []
        for site, samples in sample_mlps(model, sites, batches):
            order = orders[site.name]
            router = maker.make(samples.ordered(order), self.active, self.seed)
            weights = {name: weight.cpu() for name, weight in router.state_dict().items()}
            described = router.describe()
            route = Route(site.name, site.units, described, self.few, order, weights)
            routes.append(route)
        return Planned(PrunePlan(tuple(routes), {"active": self.active}))


@dataclass(frozen=True, kw_only=True)
class RoutedTraining(Routes, TrainedSchedule):
    """Trains routers and the model together (`Routing`); both stages are one training."""

    pruner: Routing = field(kw_only=True)

    def check(self, sites: Sequence[Site], method: Method) -> None:
        super().check(sites, method)
        parameters, training = self.parameters, self.training
        if parameters.wraps or parameters.frozen or training.sharded or training.checkpointing:
            raise ValueError(
                "schedule routing trains the model and needs the scores of every forward pass; expected "
                "recovery/parameters@schedule.parameters=full, without fsdp and checkpointing"
            )
        check_one_process(type(self.pruner).__name__)

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Split | None = None,
    ) -> Planned:
        model, sites, pruner = subject.model, subject.sites, self.pruner
        if prepared is None:
            prepared = self.prepare(subject, method)
        dense = copy.deepcopy(model) if self.objective.needs_dense else None
        setting, more = with_teacher(self.setting(subject, dense), self.objective)
        batches = list(batches)
        size, initial = pruner.expert_size, None
        orders = group_neurons(model, sites, batches, pruner.grouping, size, self.seed)
        for site in sites:
            permute_units(model, site, orders[site.name])
        if pruner.initial == "activations":
            initial = predictors(model, sites, batches, size, self.active, self.seed)
        routing = RoutingStages(pruner, model, sites, 1 - self.active, initial)
        trained = self.loop.run(setting, prepared, routing)
        if not routing.settled:
            routing.settle()
        routes = routing.routes()
        notes = trained.notes | routing.detach() | more
        notes["met"] = abs(notes["reached"] - notes["asked"]) <= NEAR
        if is_main() and not notes["met"]:
            print(
                f"cfsp: routing: {1 - notes['reached']:.1%} of the units are active, not {self.active:.1%}; "
                "expected more steps or another schedule.pruner.gain",
                file=sys.stderr,
            )
        return Planned(PrunePlan(tuple(routes), {"active": self.active}), notes)
