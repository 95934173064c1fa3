"""Models whose MLPs are routed by random routers."""

import torch
from families import make

import cfsp
from cfsp.model.find_sites import find_sites
from cfsp.model.routers import make_router
from cfsp.plans.plan import PrunePlan, Route


def route_of(model, site, order=True, **options):
    """A random route of a site."""
    inputs = next(iter(site.producers))
    weight = model.get_submodule(inputs.module).weight
    router = {"class": "LearnedRouter", "inputs": weight.shape[1 - inputs.dim], "size": 4, **options}
    router["experts"] = site.units // 4
    torch.manual_seed(5)
    weights = {name: torch.randn_like(one) for name, one in make_router(router).state_dict().items()}
    return Route(site.name, site.units, router, 4, torch.randperm(site.units) if order else None, weights)


def plan_for(model, **options):
    return PrunePlan(tuple(route_of(model, site, **options) for site in find_sites(model)))


def routed(family="llama", **options):
    model = make(family)
    cfsp.apply(plan_for(model, **options), model)
    return model


def install_thresholds(model, site, router):
    """Make one MLP a routed one with a router that is made already."""
    cfsp.apply(
        PrunePlan((Route(site.name, site.units, router.describe(), 4, None, router.state_dict()),)), model
    )
