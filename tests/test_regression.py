"""Regression: refits, removal costs and swaps against what plain least squares says."""

import pytest
import torch

from cfsp.statistics.regression import (
    centred,
    channels,
    damping,
    refit,
    removal_path,
    squared_error,
    swap,
)


def moments_of(x, t):
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return x.T @ x / len(x), x.T @ t.double() / len(x)


@pytest.fixture
def data():
    """Correlated inputs of 12 channels, weights of 5 outputs, what they give."""
    torch.manual_seed(0)
    x = torch.randn(400, 12) @ torch.randn(12, 12) + torch.randn(12)
    weight = torch.randn(12, 5)
    return x.double(), weight.double(), (x @ weight).double()


@pytest.mark.parametrize("constant", [False, True])
def test_refit_is_lstsq(data, constant):
    x, _, t = data
    keep = torch.tensor([0, 3, 4, 9])
    weight, bias = refit(*moments_of(x, t), keep, 1e-12, None, constant)
    features = torch.cat([x[:, keep], torch.ones(len(x), 1).double()], 1) if constant else x[:, keep]
    expected = torch.linalg.lstsq(features, t).solution
    torch.testing.assert_close(weight, expected[:4], rtol=1e-6, atol=1e-6)
    if constant:
        torch.testing.assert_close(bias, expected[4], rtol=1e-6, atol=1e-6)


def test_a_large_ridge_leads_to_what_it_pulls_to(data):
    x, weight, t = data
    keep = torch.tensor([1, 2])
    zero, _ = refit(*moments_of(x, t), keep, 1e9, None, False)
    kept, _ = refit(*moments_of(x, t), keep, 1e9, weight[keep], False)
    assert zero.abs().max() < 1e-6
    torch.testing.assert_close(kept, weight[keep])


def test_squared_error_ranks_as_the_residual_does(data):
    x, _, t = data
    moments = moments_of(x, t)
    for keep in (torch.tensor([0]), torch.tensor([2, 7, 8])):
        weight, bias = refit(*moments, keep, 1e-9, None, True)
        residual = (t - x[:, keep] @ weight - bias).square().sum(1).mean()
        error = squared_error(*moments, keep, weight, bias) + t.square().sum(1).mean()
        torch.testing.assert_close(error, residual)


@pytest.mark.parametrize("span", [1, 3])
def test_every_step_of_the_path_costs_what_the_best_refit_loses(data, span):
    x, weight, t = data
    moment = moments_of(x, t)[0][:12, :12]
    order, costs = removal_path(torch.linalg.inv(moment), weight, span)
    units = 12 // span
    assert sorted(order.tolist()) == list(range(units))
    for gone in range(1, units):
        left = sorted(order[gone:].tolist())
        places = torch.cat([torch.arange(unit * span, (unit + 1) * span) for unit in left])
        best, _ = refit(*moments_of(x, t), places, 1e-13, None, False)
        residual = (t - x[:, places] @ best).square().sum(1).mean()
        torch.testing.assert_close(costs[:gone].sum(), residual, rtol=1e-6, atol=1e-8)


def test_the_first_removal_is_the_cheapest_of_all(data):
    x, weight, t = data
    moment, _ = moments_of(x, t)
    order, _ = removal_path(torch.linalg.inv(moment[:12, :12]), weight, 1)
    residuals = []
    for unit in range(12):
        keep = torch.tensor([place for place in range(12) if place != unit])
        residuals.append(
            squared_error(*moments_of(x, t), keep, *refit(*moments_of(x, t), keep, 1e-13, None, False))
        )
    assert int(order[0]) == int(torch.stack(residuals).argmin())


def test_removing_in_rounds_starts_where_one_by_one_does(data):
    x, weight, _ = data
    inverse = torch.linalg.inv(moments_of(x, x)[0][:12, :12])
    order, costs = removal_path(inverse, weight, 1, share=0.5)
    assert sorted(order.tolist()) == list(range(12))
    assert costs.isfinite().all()
    assert order[0] == removal_path(inverse, weight, 1)[0][0]


@pytest.mark.parametrize("span", [1, 3])
def test_swaps_of_units_of_several_channels_too(data, span):
    x, _, t = data
    moment, cross = moments_of(x, t)
    inner = moment[:12, :12], cross[:12]

    def error(keep):
        places = channels(sorted(keep), span, moment.device)
        return float(squared_error(moment, cross, places, *refit(moment, cross, places, 1e-9, None, False)))

    end, made = swap(*inner, [0, 1], span, 20)
    assert 0 < made < 20
    assert error(end) < error([0, 1])
    outside = set(range(12 // span)) - set(end)
    assert error(end) <= min(error({*end, new} - {old}) for new in outside for old in end) + 1e-6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_swaps_end_where_no_exchange_helps(seed, groups):
    dice = torch.Generator().manual_seed(seed)
    x, t = (torch.randn(60, size, generator=dice, dtype=torch.float64) for size in (12, 4))
    x = x @ torch.randn(12, 12, generator=dice, dtype=torch.float64)
    damped, cross = x.T @ x / 60 + 0.01 * torch.eye(12, dtype=torch.float64), x.T @ t / 60

    def error(keep):
        places = torch.tensor(sorted(keep))
        return float(-(cross[places] * torch.linalg.solve(damped[places][:, places], cross[places])).sum())

    end, _ = swap(damped, cross, [0, 1, 2, 6, 7, 8], 1, 100, groups)
    pairs = [
        (new, old) for new in set(range(12)) - set(end) for old in end if groups == 1 or new // 6 == old // 6
    ]
    assert error(end) <= min(error({*end, new} - {old}) for new, old in pairs) + 1e-9


def test_units_are_exchanged_within_their_group(data):
    x, _, t = data
    moment, cross = moments_of(x, t)
    inner = moment[:12, :12], cross[:12]
    free, _ = swap(*inner, [0, 1, 3, 5, 6, 7], 1, 20)
    held, made = swap(*inner, [0, 1, 3, 5, 6, 7], 1, 20, groups=2)
    assert made > 0
    assert sum(unit < 6 for unit in held) == 4
    assert held != free


def test_greedy_removals_and_swaps_lower_one_error(data):
    """From where the greedy choice ends no exchange raises what its costs add up to."""
    x, weight, t = data
    moment, cross = moments_of(x, t)
    damped = moment[:12, :12] + 0.05 * moment.diagonal()[:12].mean() * torch.eye(12, dtype=moment.dtype)
    pulled = cross[:12] + (damped - moment[:12, :12]) @ weight

    def error(keep):
        places = torch.tensor(sorted(keep))
        return float(-(pulled[places] * torch.linalg.solve(damped[places][:, places], pulled[places])).sum())

    inverse = torch.linalg.inv(damped)
    order, _ = removal_path(inverse, inverse @ pulled, 1)
    for gone in range(1, 12):
        keep = order[gone:].tolist()
        assert error(swap(damped, pulled, keep, 1, 20)[0]) <= error(keep) + 1e-9


def test_centring_is_what_a_constant_does(data):
    x, _, t = data
    moment, cross = centred(*moments_of(x, t))
    about = x - x.mean(0)
    torch.testing.assert_close(moment, about.T @ about / len(x))
    torch.testing.assert_close(cross, about.T @ (t - t.mean(0)) / len(x))


def test_one_massive_channel_does_not_drown_the_others():
    """With the median as scale, the fit to the other channels is nearly that without a ridge."""
    torch.manual_seed(1)
    x = torch.randn(2000, 12).double() @ torch.randn(12, 12).double()
    x[::200, 5] = 3e3  # few tokens, as in massive activations
    t = x @ torch.randn(12, 5).double()
    moments, keep = moments_of(x, t), torch.tensor([0, 1, 2, 3, 4, 5, 6])

    def error(ridge, scale):
        fitted = refit(*moments, keep, ridge, None, False, scale=scale)
        return float(squared_error(*moments, keep, *fitted) + t.square().sum(1).mean())

    best, mean, median = error(1e-12, "mean"), error(1e-2, "mean"), error(1e-2, "median")
    assert median < 1.01 * best
    assert mean > 2 * best


def test_dead_channels_do_not_lower_the_scale():
    diagonal = torch.tensor([0.0, 0.0, 0.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    assert float(damping(diagonal, 0.5, "median")) == 1.0
    assert float(damping(diagonal, 0.5, "mean")) == 0.5
    assert float(damping(torch.zeros(3), 0.5, "median")) == 0.5
