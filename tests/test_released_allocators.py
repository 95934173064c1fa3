"""Allocations of released codes: reference vectors, and what they say of themselves."""

from dataclasses import replace

import pytest
import torch
from allocating import PROFILE, RATIOS_20, RATIOS_50, WIDTHS, mlps, run, site, stats_of

from cfsp.allocators.base import Budget
from cfsp.allocators.cfsp import CFSP, CFSPReleased, released_ratios
from cfsp.allocators.global_rank import GlobalRankReleased, tell_of_heads
from cfsp.allocators.uniform import UniformReleased
from cfsp.model.sites import Member, Site


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


def test_released_allocation_may_miss_the_budget_but_not_its_own_bounds():
    allocator, sites = CFSPReleased(round_to=128, temperature=13.1072), mlps(172, 5)
    widths, budget = run(allocator, sites, 0.5, stats=stats_of(sites, [0.1] * 5))
    assert [*widths.values()] == [128] * 5
    assert sum(widths.values()) * 3 > budget
    with pytest.raises(ValueError, match="round_to=128: 0.mlp has 100 units"):
        CFSPReleased(round_to=128, temperature=13.1072).check(mlps(100), Budget(0, 0, {}))


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
