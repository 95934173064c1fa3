"""Random routers on all MLPs of a model, without a plan."""

import torch

from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import RoutedMLP


def route(model, size=4, **options):
    """Make all MLPs of a model routed, by random routers that choose about half of the experts."""
    torch.manual_seed(1)
    for site in find_sites(model):
        producers, consumer = paths(site)
        inputs = site_inputs(model, producers[0])
        router = {"class": "LearnedRouter", "inputs": inputs, "experts": site.units // size, "size": size}
        routed = RoutedMLP.install(model, producers, consumer, router, **options)
        routed.router.last.weight.data.normal_()
    return model


def site_inputs(model, path):
    weight = model.get_submodule(path).weight
    return weight.shape[0] if "Conv1D" in type(model.get_submodule(path)).__name__ else weight.shape[1]


def paths(site):
    """Producers and consumer of a site."""
    return [*dict.fromkeys(member.module for member in site.producers)], site.consumers[0].module
