"""Grouping: split the neurons of an MLP into experts of equal size.

Neurons of an expert are chosen together, so they should be active for the same tokens. The result is an order
of the neurons: expert e has those at the places e * size to (e + 1) * size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPINGS = ("kmeans", "co_activation", "random")
"""kmeans: by the rows of the first producer (a gated MLP's gate). co_activation: by the tokens at which a
neuron is active. random: by chance."""

TOLERANCE = 0.1
"""By which part of the distances' standard deviation a bid exceeds what it must. Less is exacter, slower."""

ROUNDS = 60
"""Rounds of bids. The few points that have no cluster then get the nearest one with room."""


def check_experts(neurons: int, size: int, name: str) -> None:
    """Raise ValueError if experts of this size do not fill a site."""
    if size < 1 or neurons % size:
        near = [one for one in range(1, neurons + 1) if neurons % one == 0]
        best = sorted(sorted(near, key=lambda one: abs(one - size))[:3])
        raise ValueError(
            f"expert_size={size}: it does not divide the {neurons} neurons of {name}; expected "
            f"{', '.join(map(str, best))}, or another divisor"
        )


def order_of(grouping: str, features: Tensor, size: int, seed: int = 0) -> Tensor:
    """Return the neurons in the order of their experts. [neurons]

    features: a row per neuron: its weights, or its activations. [neurons, features]
    """
    generator = torch.Generator().manual_seed(seed)
    if grouping == "random":
        return torch.randperm(len(features), generator=generator)
    clusters = balanced_clusters(F.normalize(features.float(), dim=1), size, generator)
    return clusters.argsort(stable=True)


@torch.no_grad()
def balanced_clusters(points: Tensor, size: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """Return the cluster of each point, exactly `size` points in each: balanced k-means. [points]

    Each round assigns the points to the means with the least sum of squared distances, nearly (Malinen and
    Fränti 2014), then moves the means. The best round counts; it stops when a round gains less than 0.5 %.
    """
    count = len(points) // size
    first = torch.randperm(len(points), generator=generator)[:count].to(points.device)
    means, norms = points[first], points.square().sum(1)
    best, least = torch.arange(len(points), device=points.device) // size, torch.inf
    for _ in range(rounds):
        distances = norms[:, None] - 2 * points @ means.t() + means.square().sum(1)  # [points, clusters]
        clusters = assign_clusters(distances, size)
        total = float(distances.gather(1, clusters[:, None]).sum())
        if total >= least * (1 - 5e-3):
            break
        best, least = clusters, total
        means = torch.zeros_like(means).index_add_(0, clusters, points) / size
    return best


def assign_clusters(distances: Tensor, size: int) -> Tensor:
    """Return the cluster of each point, `size` points in each, at nearly the least total. [points]

    An auction (Bertsekas 1988): a point bids for the cluster that is best at the present prices, by how much
    better it is than the second best; a cluster keeps its highest bids, and the lowest of them is its price.
    Unlike the Hungarian method it does not grow with the cube of the points. [points, clusters]
    """
    points, clusters = distances.shape
    if clusters == 1:
        return torch.zeros(points, dtype=torch.long, device=distances.device)
    step = TOLERANCE * float(distances.std())
    prices = distances.new_zeros(clusters)
    owner = torch.full((points,), -1, device=distances.device)
    bids = distances.new_zeros(points)
    free = torch.arange(points, device=distances.device)
    for _ in range(ROUNDS):
        values, places = (-distances[free] - prices).topk(2, dim=1)
        owner[free] = places[:, 0]
        bids[free] = prices[places[:, 0]] + (values[:, 0] - values[:, 1]) + step
        ranked, ranks = ranks_in_clusters(owner, bids, clusters)
        full = ranked[ranks == size - 1]
        prices[owner[full]] = bids[full]
        free = ranked[ranks >= size]
        owner[free] = -1
        if not len(free):
            return owner
    return fill(distances, owner, size)


def ranks_in_clusters(owner: Tensor, bids: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the points by cluster, their highest bids first, and each one's rank there. Both [points]"""
    ranked = bids.argsort(descending=True, stable=True)
    ranked = ranked[owner[ranked].argsort(stable=True)]
    counts = torch.bincount(owner, minlength=clusters)
    return ranked, torch.arange(len(ranked), device=ranked.device) - (counts.cumsum(0) - counts)[
        owner[ranked]
    ]


def fill(distances: Tensor, owner: Tensor, size: int) -> Tensor:
    """Give the points without a cluster (-1) the nearest one with room, the nearest point first. [points]"""
    owner = owner.clone()
    free = (owner < 0).nonzero().flatten()
    room = size - torch.bincount(owner[owner >= 0], minlength=distances.shape[1])
    left = distances[free].clone()
    left[:, room == 0] = torch.inf
    for _ in range(len(free)):
        point, cluster = divmod(int(left.argmin()), left.shape[1])
        owner[free[point]] = cluster
        room[cluster] -= 1
        left[point] = torch.inf
        if not room[cluster]:
            left[:, cluster] = torch.inf
    return owner
