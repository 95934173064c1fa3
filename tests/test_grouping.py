"""Neurons in experts: balanced, nearly as good as the best assignment, and the same model after it."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from cfsp.plans.grouping import GROUPINGS, assign_clusters, balanced_clusters, check_experts, order_of


def planted(clusters=6, size=8, noise=0.1):
    """Points around some means, in a random order, and the cluster of each."""
    torch.manual_seed(0)
    means = torch.randn(clusters, 12)
    truth = torch.arange(clusters).repeat_interleave(size)[torch.randperm(clusters * size)]
    return means[truth] + noise * torch.randn(clusters * size, 12), truth


@pytest.mark.parametrize("size", [1, 4, 32])
def test_an_assignment_is_balanced_and_nearly_the_best(size):
    torch.manual_seed(size)
    distances = torch.rand(256, 256 // size)
    found = assign_clusters(distances, size)
    assert torch.equal(torch.bincount(found), torch.full((256 // size,), size))
    rows, columns = linear_sum_assignment(distances.repeat_interleave(size, 1).numpy())
    best = distances.repeat_interleave(size, 1)[rows, columns].sum()
    total, chance = distances.gather(1, found[:, None]).sum(), distances.mean() * 256
    assert best <= total < best + 0.05 * (chance - best)


def test_equal_points_are_assigned_too():
    found = assign_clusters(torch.zeros(12, 3), 4)
    assert torch.equal(torch.bincount(found), torch.tensor([4, 4, 4]))
    assert torch.equal(assign_clusters(torch.rand(5, 1), 5), torch.zeros(5, dtype=torch.long))


def test_clusters_that_are_there_are_found():
    points, truth = planted()
    found = [balanced_clusters(points, 8, torch.Generator().manual_seed(seed)) for seed in range(8)]
    spread = [sum(points[one == c].var(0).sum() for c in range(6)) for one in found]
    best = found[min(range(8), key=lambda one: spread[one])]
    assert all(len(truth[best == cluster].unique()) == 1 for cluster in range(6))


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_an_order_has_every_neuron_once_and_follows_the_seed(grouping):
    points, truth = planted()
    order = order_of(grouping, points, 8, seed=1)
    assert torch.equal(order.sort().values, torch.arange(48))
    assert torch.equal(order, order_of(grouping, points, 8, seed=1))
    mixed = sum(len(truth[order].view(6, 8)[expert].unique()) for expert in range(6))
    assert (mixed > 20) == (grouping == "random")


def test_the_length_of_a_row_does_not_matter():
    points, _ = planted()
    longer = points * torch.rand(48, 1).add(0.1)
    assert torch.equal(order_of("kmeans", points, 8), order_of("kmeans", longer, 8))


@pytest.mark.parametrize("size", [0, 7])
def test_a_size_that_does_not_divide_names_some_that_do(size):
    with pytest.raises(
        ValueError, match=f"expert_size={size}: it does not divide the 40 neurons of a.mlp; expected"
    ):
        check_experts(40, size, "a.mlp")
