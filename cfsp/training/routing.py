"""LTE: routers that are learned together with the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.plans.grouping import check_experts
from cfsp.plans.routes import check_dense
from cfsp.training.pruner import Decide, Pruner
from cfsp.training.routing_options import RoutingOptions
from cfsp.training.routing_stages import RoutingStages


@dataclass(frozen=True, kw_only=True)
class Routing(RoutingOptions, Pruner):
    """Learns to be efficient: routers whose scores multiply experts, then choose them (arXiv:2402.06126).

    First stage: loss + eta mean G^2 + lambda mean 1 / ((G - t)^2 + guard), all weights and routers learn
    (eq. 3 to 6). Second stage: experts with G > t count once, the others not at all (eq. 2); routers are
    frozen and the other weights adapt.

    Differs from the paper: eta follows a controller that leads to the asked share of active units; routers
    begin as predictors of the most active experts, with high scores, so that the model begins nearly as the
    dense one; they have a learning rate of their own; lambda comes after eta; the guard bounds the term at
    its pole. Between the stages one shift of all routers' biases makes the share exact on the last batches,
    to within 0.2 points, and keeps it while the inputs of the frozen routers change.
    """

    @property
    def learns(self) -> bool:
        return True

    def check(self, model: PreTrainedModel, sites: Sequence[Site], adapted: Collection[str] = ()) -> None:
        check_dense(model, sites, "routed")
        for site in sites:
            check_experts(site.units, self.expert_size, site.name)

    def attach(
        self, model: PreTrainedModel, sites: Sequence[Site], target: float, decide: Decide
    ) -> RoutingStages:
        return RoutingStages(self, model, sites, target)
