"""Allocators: reference vectors, exact budgets, bounds."""

import random
from dataclasses import replace

import pytest
import torch

from cfsp.allocators.cfsp import CFSP, CFSPReleased, released_ratios
from cfsp.allocators.global_rank import GlobalRank, GlobalRankReleased, tell_of_heads
from cfsp.allocators.uniform import Uniform, UniformReleased
from cfsp.sites import Member, Site

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
    return allocator.allocate(sites, scores or {}, stats or stats_of(sites), cost, budget), budget


@pytest.mark.parametrize(("sparsity", "expected"), [(0.5, RATIOS_50), (0.2, RATIOS_20)])
def test_released_keep_ratios(sparsity, expected):
    ratios = released_ratios(dict(enumerate(PROFILE)), 13.1072, 1 - sparsity)
    assert [*ratios.values()] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("sparsity", "units"), WIDTHS)
def test_released_widths(sparsity, units):
    widths, _ = run(CFSPReleased(round_to=128, temperature=13.1072), mlps(units), sparsity)
    assert [*widths.values()] == WIDTHS[sparsity, units]


@pytest.mark.parametrize("units", [172, 1000, 4096])
def test_released_widths_without_its_flag_are_one_more_than_the_integer_part(units):
    widths, _ = run(CFSPReleased(round_to=1, temperature=13.1072), mlps(units), 0.5)
    score = torch.arange(float(units), 0, -1)
    for width, ratio in zip(widths.values(), RATIOS_50, strict=True):
        threshold = score[int(units * ratio)]  # as the release picks it, of the sorted scores
        assert width == int((score >= threshold).sum())
    everything, _ = run(CFSPReleased(round_to=1, temperature=13.1072), mlps(units), 0.0)
    assert {*everything.values()} == {units}


def test_unclipped_cfsp_gives_the_released_ratios():
    widths, _ = run(CFSP(), mlps(100_000), 0.5)
    assert [width / 100_000 for width in widths.values()] == pytest.approx(RATIOS_50, abs=1e-5)


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


def test_released_allocation_may_miss_the_budget_but_not_its_own_bounds():
    allocator, sites = CFSPReleased(round_to=128, temperature=13.1072), mlps(172, 5)
    widths, budget = run(allocator, sites, 0.5, stats=stats_of(sites, [0.1] * 5))
    assert [*widths.values()] == [128] * 5
    assert sum(widths.values()) * 3 > budget
    with pytest.raises(ValueError, match="round_to=128: 0.mlp has 100 units"):
        CFSPReleased(round_to=128, temperature=13.1072).check(mlps(100), {}, 0)


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


def test_released_uniform_rounds_every_site_by_itself():
    sites = [site(0, 40), site(0, 7, "attention"), site(1, 41)]
    cost = {one.name: 3000 if one.kind == "mlp" else 90000 for one in sites}
    down, _ = run(UniformReleased(), sites, 0.3, cost)
    up, _ = run(UniformReleased(neurons="up"), sites, 0.3, cost)
    assert list(down.values()) == [28, 5, 29]  # 40 - 12, 7 - floor(2.1), 41 - floor(12.3)
    assert list(up.values()) == [28, 5, 28]
    assert list(run(UniformReleased(protect=[0]), sites, 0.3, cost)[0].values()) == [40, 7, 29]


def test_released_uniform_takes_query_heads_of_every_group():
    heads = Site("0.query_heads", "query_heads", 12, 0, ("0",), (), (Member("0", 1),), groups=4)
    assert run(UniformReleased(), [heads], 0.4)[0] == {"0.query_heads": 8}


def test_released_global_rank_cuts_above_the_closest_weight():
    sites = [site(0, 4), site(0, 2, "attention")]
    scores = {"0.mlp": torch.tensor([9.0, 5, 3, 1]), "0.attention": torch.tensor([7.0, 2])}
    # By falling score the weights are 1, 3, 1, 1, 3, 1 and their sums 1, 4, 5, 6, 9, 10.
    for sparsity, expected in ((0.5, [1, 1]), (0.4, [2, 1]), (0.15, [3, 1])):
        found, _ = run(GlobalRankReleased(head_weight=3), sites, sparsity, {s.name: 1 for s in sites}, scores)
        assert list(found.values()) == expected, sparsity


def test_a_head_of_another_size_than_flap_s_is_told_what_it_weighs(capsys):
    def allocate(channels, **options):
        member = Member("o_proj", 1, span=channels)
        heads = Site("heads", "attention", 4, 0, (), (member,), (member,))
        allocator, sites = GlobalRankReleased(**options), [site(0, 40), heads]
        scores = {one.name: torch.rand(one.units) for one in sites}
        for _ in range(2):
            run(allocator, sites, 0.5, {one.name: 1 for one in sites}, scores)
        return capsys.readouterr().err

    tell_of_heads.cache_clear()
    (line,) = allocate(48).splitlines()
    assert line.endswith("allocator.head_weight=64")  # 512 / 3 x 48 / 128
    assert allocate(128) == allocate(24, head_weight=32) == ""


@pytest.mark.parametrize("allocator", [CFSP(temperature=1e300), CFSPReleased(temperature=1e300)])
def test_a_temperature_that_makes_a_step_of_the_sigmoid_is_refused(allocator):
    with pytest.raises(ValueError, match=r"temperature=1e\+300: .*; expected at most (\d+)") as refused:
        run(allocator, mlps(1024), 0.5)
    most = float(str(refused.value).rsplit(" ", 1)[1])
    assert run(replace(allocator, temperature=0.99 * most, round_to=1), mlps(1024), 0.5)


def test_released_temperature_is_tokens_over_ten_thousand():
    sites = mlps(14336)
    stats = stats_of(sites)
    for stat in stats.values():
        stat["block_tokens"] = torch.tensor(131072.0)
    implied, _ = run(CFSPReleased(round_to=128), sites, 0.5, stats=stats)
    given, _ = run(CFSPReleased(round_to=128, temperature=13.1072), sites, 0.5)
    assert implied == given
    with pytest.raises(ValueError, match="temperature=None: expected a finite number"):
        CFSP(temperature=None)


def test_allocators_of_blocks_refuse_sites_without_one():
    hidden = Site("hidden", "hidden", 8, None, (), (), (Member("norm", 0),))
    with pytest.raises(ValueError, match="allocator CFSP goes by blocks, and 'hidden' belongs to none"):
        run(CFSP(), [hidden], 0.5, stats={"hidden": {}})


@pytest.mark.parametrize("units", [40, 60, 100, 200])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7])
def test_released_uniform_is_exact_where_the_share_is_a_whole_number(units, share):
    sites = [site(0, units), site(0, 7, "attention"), site(1, 41)]
    cost = {one.name: 96 if one.kind == "mlp" else 1153 for one in sites}
    for neurons in ("down", "up"):
        found, _ = run(UniformReleased(neurons=neurons), sites, share, cost)
        assert found["0.mlp"] == units - round(share * units)


def test_released_allocators_refuse_what_they_would_ignore():
    for options in ({"round_to": 8}, {"allow_empty": True}):
        with pytest.raises(ValueError, match="rounds as its release does; expected no round_to"):
            UniformReleased(**options)
        with pytest.raises(ValueError, match="rounds as its release does; expected no round_to"):
            GlobalRankReleased(**options)
