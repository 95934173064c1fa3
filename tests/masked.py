"""Movement pruning in a tiny model, without a training."""

import math

import torch
from families import kinds_of

import cfsp
from cfsp.allocators.global_rank import GlobalRank
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.training.movement import Movement


def sites_of(model):
    return cfsp.find_sites(model, kinds_of(model))


def attached(model, target=0.4, seed=0, **options):
    """A pruner in a model, with random scores; the allocator ranks all units together."""
    pruner = Movement(**{"tile": 1, **options})
    sites = sites_of(model)
    pruner.check(model, sites)
    state, allocator = PartlyCut(model, sites), GlobalRank(allow_empty=True)
    total = sum(site.units * state.cost(site) for site in sites)

    def decide(scores, due=1.0):
        widths = allocate(state, sites, scores, {}, allocator, int(due * math.ceil(target * total)))
        return choose(sites, scores, widths, allocator)

    pruning = pruner.attach(model, sites, target, decide)
    generator = torch.Generator().manual_seed(seed)
    for _, _, gate in pruning.all_gates():
        gate.scores.data = torch.randn(gate.scores.shape, generator=generator)
    return pruning
