"""Sites without a model, and the widths that an allocator gives them."""

import torch

from cfsp.allocators.base import Budget
from cfsp.model.sites import Member, Site

PROFILE = [0.38, 0.24, 0.17, 0.14, 0.12, 0.11, 0.10, 0.09, 0.09, 0.08, 0.10, 0.26]
RATIOS_50 = [0.996073, 0.785803, 0.570436, 0.467618, 0.400989, 0.369053, 0.338334, 0.309009, 0.309009]
RATIOS_50 += [0.281222, 0.338334, 0.834120]
RATIOS_20 = [0.990476, 0.909739, 0.827045, 0.787566, 0.761983, 0.749721, 0.737925, 0.726666, 0.726666]
RATIOS_20 += [0.715996, 0.737925, 0.928291]
WIDTHS = {
    (0.5, 14336): [14336, 11264, 8192, 6656, 5760, 5248, 4864, 4480, 4480, 3968, 4864, 11904],
    (0.2, 14336): [14208, 13056, 11904, 11264, 10880, 10752, 10624, 10368, 10368, 10240, 10624, 13312],
    (0.2, 11008): [10880, 9984, 9088, 8704, 8448, 8192, 8064, 7936, 7936, 7936, 8064, 10240],
}


def site(block: int, units: int, kind: str = "mlp") -> Site:
    member = Member(f"{block}.{kind}", 1)
    return Site(f"{block}.{kind}", kind, units, block, (str(block),), (member,), (member,))


def mlps(units: int, blocks: int = 12) -> list[Site]:
    return [site(block, units) for block in range(blocks)]


def stats_of(sites, profile=PROFILE):
    return {site.name: {"block_angular": torch.tensor(profile[site.block]).double()} for site in sites}


def run(allocator, sites, sparsity, cost=None, scores=None, stats=None):
    """Widths, and the budget that they were asked to meet."""
    cost = cost or {site.name: 3 for site in sites}
    total = sum(site.units * cost[site.name] for site in sites)
    budget = total - round(sparsity * total)
    return allocator.allocate(
        sites, scores or {}, stats or stats_of(sites), Budget.of(sites, cost, budget)
    ), budget
