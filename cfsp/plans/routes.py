"""Routes: carry out the edits that make MLPs routed, and put neurons into another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import RoutedMLP, routed_mlps, uninstall
from cfsp.model.sites import Site
from cfsp.model.weights import bias_of, weight_of
from cfsp.plans.plan import Route


def layer_paths(site: Site) -> tuple[list[str], str]:
    """Return the paths of a site's producers, each once, and of its consumer."""
    return [*dict.fromkeys(member.module for member in site.producers)], site.consumers[0].module


def route_units(pairs: Sequence[tuple[Route, Site]], model: PreTrainedModel) -> None:
    """Carry out all routes of a plan. The routers get the dtype of the weights, and do not learn."""
    for route, site in pairs:
        check_dense(model, [site], "routed")
        if route.order is not None:
            permute_units(model, site, route.order)
        routed = install_router(route, site, model)
        routed.router.load_state_dict(
            {name: tensor.to(model.dtype) for name, tensor in route.weights.items()}
        )
        routed.router.requires_grad_(False)  # hard choices give them no gradient


def take_routes(model: PreTrainedModel) -> list[Route]:
    """Make a routed model dense and return the routes that make it the same routed model again.

    Raises ValueError if a router lies where the model has no MLP that can be routed. It is then unchanged.
    """
    found = {one.consumer: one for one in routed_mlps(model).values()}
    if not found:
        return []
    sites = {site.consumers[0].module: site for site in find_sites(model, ["mlp"])}
    if lost := found.keys() - sites.keys():
        raise ValueError(
            f"{min(lost)} is routed, and is no MLP of this model; expected the model's own class"
        )
    routes = []
    for consumer, routed in found.items():
        weights = {name: one.detach().clone() for name, one in routed.router.state_dict().items()}
        site = sites[consumer]
        routes.append(Route(site.name, site.units, routed.router.describe(), routed.few, weights=weights))
    uninstall(model)
    return routes


def install_router(route: Route, site: Site, model: nn.Module) -> RoutedMLP:
    """Make one MLP routed, with new weights in its router."""
    producers, consumer = layer_paths(site)
    return RoutedMLP.install(model, producers, consumer, route.router, few=route.few)


@torch.no_grad()
def permute_units(model: nn.Module, site: Site, order: Tensor) -> None:
    """Put a site's neurons into another order. The model computes the same. order: [units]"""
    for member in site.members:
        module = model.get_submodule(member.module)
        weight, bias = weight_of(module), bias_of(module)
        places = member.places(order.tolist()).to(weight.device)
        own = weight.narrow(member.dim, member.offset, len(places))
        own.copy_(weight.index_select(member.dim, places))
        if member.bias and bias is not None:
            bias[member.offset : member.offset + len(places)] = bias[places]


def check_dense(model: nn.Module, sites: Sequence[Site], what: str) -> None:
    """Raise ValueError if an MLP of these sites is routed already. what: what cannot be done to it."""
    hint = "expected a dense model" if what == "routed" else "expected sparsity=0 here"
    known = {one.consumer for one in routed_mlps(model).values()}
    for site in sites:
        if site.units_are_neurons and site.consumers[0].module in known:
            raise ValueError(f"{site.name} is routed: its units cannot be {what}; {hint}")
