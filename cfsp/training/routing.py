"""LTE: routers that are learned together with the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.sites import Site
from cfsp.plans.grouping import GROUPINGS, check_experts
from cfsp.plans.routes import check_dense
from cfsp.training.pruner import Decide, Pruner
from cfsp.training.routing_stages import RoutingStages


@dataclass(frozen=True, kw_only=True)
class Routing(Pruner):
    """Learns to be efficient: routers whose scores multiply experts, then choose them (arXiv:2402.06126).

    First stage: loss + eta mean G^2 + lambda mean 1 / ((G - t)^2 + guard), all weights and routers learn
    (eq. 3 to 6). Second stage: experts with G > t count once, the others not at all (eq. 2); routers are
    frozen and the other weights adapt.

    Differs from the paper: eta follows a controller that leads to the asked share of active units; scores
    begin near 1, so that the model begins as the dense one; lambda comes after eta; the guard bounds the
    term at its pole. Between the stages one shift of all routers' biases makes the share exact on the last
    batches, and keeps it while the inputs of the frozen routers change.

    expert_size: neurons that are chosen together. grouping: which neurons these are; see `grouping`.
    efficiency: eta before the controller's factor. separability: lambda. most: the largest eta; above it all
        scores collapse before lambda can part them.
    threshold: t. guard: see above. start: bias of the routers at the beginning.
    adaptation: fraction of the steps of the second stage. learning_rate: of the routers.
    gain: of the controller. few: see `RoutedMLP`.
    """

    expert_size: int = 32
    grouping: str = "kmeans"
    efficiency: float = 0.5
    most: float = 1.0
    separability: float = 0.3
    threshold: float = 0.5
    guard: float = 1e-2
    start: float = 2.0
    adaptation: float = 0.4
    learning_rate: float = 5e-3
    gain: float = 10.0
    few: int = 4

    def __post_init__(self) -> None:
        check_choice("grouping", self.grouping, GROUPINGS)
        for name in ("expert_size", "few"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("separability", "gain", "learning_rate"):
            check_number(name, getattr(self, name), least=0)
        for name in ("threshold", "adaptation"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name):g}; expected one in (0, 1)")
        for name in ("guard", "efficiency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g}; expected more than 0")
        if self.most < self.efficiency:
            raise ValueError(
                f"most={self.most:g} is below efficiency={self.efficiency:g}; expected at least that"
            )
        first = 1 / (1 + math.exp(-self.start))
        if first < self.threshold + 0.1:
            raise ValueError(
                f"start={self.start:g}: scores begin at {first:.2f}, and the separability term has its pole "
                f"at threshold={self.threshold:g}; expected scores well above it, for instance start=2"
            )

    @property
    def learns(self) -> bool:
        return True

    def check(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        check_dense(model, sites, "routed")
        for site in sites:
            check_experts(site.units, self.expert_size, site.name)

    def attach(
        self, model: PreTrainedModel, sites: Sequence[Site], target: float, decide: Decide
    ) -> RoutingStages:
        return RoutingStages(self, model, sites, target)
