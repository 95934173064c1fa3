"""Allocators: exact budgets, bounds."""

import random

import pytest
import torch
from allocating import PROFILE, mlps, run, site, stats_of

from cfsp.allocators.cfsp import CFSP, CFSPReleased
from cfsp.allocators.global_rank import GlobalRank
from cfsp.allocators.uniform import Uniform
from cfsp.model.sites import Member, Site


def test_cfsp_hands_the_excess_of_full_blocks_on_in_proportion():
    sites = mlps(100_000)
    widths, _ = run(CFSP(), sites, 0.2)
    assert widths["0.mlp"] == widths["11.mlp"] == 100_000
    weights = torch.sigmoid(13.1072 * (torch.tensor(PROFILE) - sum(PROFILE) / 12))
    factors = [widths[site.name] / float(weight) for site, weight in zip(sites, weights, strict=True)]
    free = [factor for site, factor in zip(sites, factors, strict=True) if widths[site.name] < 100_000]
    assert free == pytest.approx([free[0]] * len(free), rel=1e-4)


def test_temperature_zero_is_uniform():
    assert len(set(run(CFSP(temperature=0.0), mlps(1000), 0.3)[0].values())) == 1


def test_global_rank_keeps_the_best_units_whatever_their_site():
    sites = [site(0, 4), site(1, 4)]
    scores = {"0.mlp": torch.tensor([9.0, 8, 7, 1]), "1.mlp": torch.tensor([6.0, 2, 3, 0])}
    assert run(GlobalRank(), sites, 0.5, scores=scores)[0] == {"0.mlp": 3, "1.mlp": 1}
    standardised = run(GlobalRank(standardise=True), sites, 0.5, scores=scores)[0]
    assert standardised == {"0.mlp": 3, "1.mlp": 1}
    scores["1.mlp"] = scores["1.mlp"] + 100
    assert run(GlobalRank(), sites, 0.5, scores=scores)[0] == {"0.mlp": 1, "1.mlp": 3}  # one at least
    assert run(GlobalRank(standardise=True), sites, 0.5, scores=scores)[0] == standardised


def test_global_rank_weighs_a_head_by_its_parameters():
    sites = [site(0, 100), site(0, 4, "attention")]
    scores = {"0.mlp": torch.arange(100.0), "0.attention": torch.tensor([200.0, 50.5, -1, -2])}
    widths, budget = run(GlobalRank(), sites, 0.5, {"0.mlp": 1, "0.attention": 20}, scores)
    assert widths == {"0.mlp": 50, "0.attention": 2}  # 20 + 49 + 20 + 1
    assert budget == 90


def test_global_rank_walks_past_a_unit_that_is_too_dear():
    sites = [*mlps(1000, 3), site(0, 4, "attention")]
    cost = {one.name: 1 for one in sites} | {"0.attention": 400}
    falling = torch.arange(1000, 0, -1.0)
    scores = {"0.mlp": falling, "1.mlp": falling, "2.mlp": falling - 2000}
    scores["0.attention"] = torch.tensor([5000.0, 5000, 5000, 499.5])  # the last comes after 1,002 neurons
    widths, budget = run(GlobalRank(), sites, 1 - 2300 / 4600, cost, scores)
    assert budget == 2300
    assert widths == {"0.mlp": 550, "1.mlp": 549, "2.mlp": 1, "0.attention": 3}


def test_cfsp_metric_is_the_one_that_is_read():
    sites = mlps(100, 2)
    stats = {
        one.name: {
            "block_angular": torch.tensor(0.1 + 0.3 * one.block),
            "block_mse": torch.tensor(0.4 - 0.3 * one.block),
        }
        for one in sites
    }
    angular, mse = (run(CFSP(metric=metric), sites, 0.5, stats=stats)[0] for metric in ("angular", "mse"))
    assert angular["1.mlp"] > angular["0.mlp"]
    assert mse["1.mlp"] < mse["0.mlp"]


ALLOCATORS = [Uniform, CFSP, GlobalRank]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("make", ALLOCATORS)
@pytest.mark.parametrize("round_to", [1, 8])
def test_budget_is_met_to_less_than_one_step(make, round_to):
    dice = random.Random(0)
    for _ in range(60):
        blocks = dice.randint(1, 6)
        profile = [dice.random() for _ in range(blocks)]
        sites = [site(block, dice.randint(16, 90)) for block in range(blocks)]
        sites += [site(block, dice.randint(2, 8), "attention") for block in range(blocks)]
        cost = {site.name: dice.randint(3, 9) * (1 if site.kind == "mlp" else 13) for site in sites}
        scores = {
            site.name: torch.rand(site.units, generator=torch.manual_seed(dice.randint(0, 99)))
            for site in sites
        }
        protect = [dice.randrange(-blocks, blocks)] if blocks > 2 else []
        allocator = make(round_to=round_to, protect=protect)
        widths, budget = run(allocator, sites, dice.uniform(0, 0.45), cost, scores, stats_of(sites, profile))
        left = budget - sum(widths[one.name] * cost[one.name] for one in sites)
        steps = [
            min(allocator.step(one), one.units - widths[one.name]) * cost[one.name]
            for one in sites
            if widths[one.name] < one.units
        ]
        assert 0 <= left < min(steps, default=1)
        for one in sites:
            assert 1 <= widths[one.name] <= one.units
            whole = widths[one.name] == one.units
            assert whole or widths[one.name] % allocator.step(one) == 0
            assert whole or one.block not in {block % blocks for block in protect}


@pytest.mark.parametrize("make", ALLOCATORS)
def test_no_sparsity_keeps_everything(make):
    sites = mlps(100)
    scores = {site.name: torch.rand(100) for site in sites}
    assert set(run(make(round_to=32), sites, 0.0, scores=scores)[0].values()) == {100}


def test_uniform_is_uniform():
    assert [*run(Uniform(), mlps(10, 4), 0.3)[0].values()] == [7, 7, 7, 7]
    assert sorted(run(Uniform(), mlps(4, 5), 0.2)[0].values()) == [3, 3, 3, 3, 4]


def test_protected_blocks_are_paid_for_by_the_others():
    widths, _ = run(Uniform(protect=[0, -1]), mlps(10, 4), 0.2)
    assert [*widths.values()] == [10, 6, 6, 10]


@pytest.mark.parametrize(
    ("allocator", "sparsity", "message"),
    [
        (Uniform(round_to=64), 0.5, r"width of zero units; with round_to=64 .* expected at most 0\.3600"),
        (Uniform(protect=[0, 1]), 0.9, r"protect=\[0, 1\] expected at most 0\.825"),
        (Uniform(round_to=101), 0.1, "round_to=101: 0.mlp has 100 units"),
        (Uniform(protect=[12]), 0.1, r"protect=\[12\]: expected blocks in -12\.\.11"),
        (
            CFSPReleased(round_to=64, temperature=13.1072),
            0.9,
            "round to zero units; expected a lower sparsity or round_to below 64",
        ),
    ],
)
def test_impossible_budgets(allocator, sparsity, message):
    with pytest.raises(ValueError, match=message):
        run(allocator, mlps(100), sparsity)


@pytest.mark.parametrize("make", ALLOCATORS)
def test_all_blocks_protected(make):
    sites = mlps(10, 2)
    scores = {one.name: torch.rand(10) for one in sites}
    assert set(run(make(protect=[0, 1]), sites, 0.0, scores=scores)[0].values()) == {10}
    with pytest.raises(ValueError, match="every block is protected"):
        run(make(protect=[0, 1]), sites, 0.1, scores=scores)


def test_bad_options():
    with pytest.raises(ValueError, match="round_to=0: expected a whole number of at least 1"):
        Uniform(round_to=0)
    with pytest.raises(ValueError, match="round_to='many': expected a whole number"):
        Uniform(round_to="many")
    with pytest.raises(ValueError, match="protect=3: expected a list of block numbers"):
        Uniform(protect=3)
    with pytest.raises(ValueError, match="temperature=nan: expected a finite number"):
        CFSP(temperature=float("nan"))
    with pytest.raises(ValueError, match="metric='l2': expected one of angular, cosine, mse, mae"):
        CFSP(metric="l2")


def test_allocators_of_blocks_refuse_sites_without_one():
    hidden = Site("hidden", "hidden", 8, None, (), (), (Member("norm", 0),))
    with pytest.raises(ValueError, match="allocator CFSP goes by blocks, and 'hidden' belongs to none"):
        run(CFSP(), [hidden], 0.5, stats={"hidden": {}})
