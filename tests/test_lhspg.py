"""LHSPG: the trial step by hand, saliencies by hand, periods, restarts."""

import math

import pytest
import torch
from lhspg_bench import Bench

from cfsp.allocators.global_rank import GlobalRank
from cfsp.allocators.protection import Protected
from cfsp.allocators.uniform import Uniform
from cfsp.model.sites import Site
from cfsp.schedules.trained import most_units
from cfsp.training.adapted_layers import LEVELS, rounded_off, spacing
from cfsp.training.half_space import GroupSums, half_space_step, mixed_saliency
from cfsp.training.lhspg import LHSPG


def test_a_trial_step_by_hand():
    """x = (3, 4) has the norm 5. With lambda 2.5 it is halved, then the adapters' d is added."""
    x, d = torch.tensor([[3.0], [3.0], [0.0]]), torch.tensor([[1.0], [-9.0], [7.0]])
    rest = torch.tensor([[4.0], [4.0], [0.0]])
    shrink = torch.tensor([2.5, 2.5, 2.5])
    (new, other), gone = half_space_step([x, rest], [d, None], shrink, 0.0)
    assert new.tolist() == [[2.5], [0.0], [0.0]]  # the second: <(1.5 - 9, 2), x> = -14.5 < 0
    assert other.tolist() == [[2.0], [0.0], [0.0]]  # a zero group stays zero, whatever is added
    assert gone.tolist() == [False, True, False]
    (_, _), gone = half_space_step([x, rest], [d, None], shrink, 0.63)  # <(2.5, 2), x> = 15.5 < 0.63 * 25
    assert gone.tolist() == [True, True, False]


def test_saliencies_by_hand():
    """W = (3, 4) and D = (1, 0): |W| = 5, |W| / 2 = 2.5, cos = 0.6, <W, D> = 3."""
    one = GroupSums(torch.tensor([25.0]), torch.tensor([1.0]), torch.tensor([3.0]), 2)
    found = {name: float(value) for name, value in one.saliencies().items()}
    assert found == pytest.approx(
        {
            "magnitude": 5,
            "avg_magnitude": 2.5,
            "cosine_similarity": 1.6,
            "taylor_first": 3,
            "taylor_second": 4.5,
        },
        rel=1e-5,
    )


def test_the_mixture_divides_by_the_norm_over_living_units():
    sums = {
        "a": GroupSums(torch.tensor([9.0, 1e6]), torch.ones(2), torch.tensor([0.0, 1.0]), 1),
        "b": GroupSums(torch.tensor([16.0]), torch.ones(1), torch.tensor([2.0]), 1),
    }
    alive = {"a": torch.tensor([True, False]), "b": torch.tensor([True])}
    found = mixed_saliency(sums, alive, {"magnitude": 0.5, "taylor_first": 1.0})
    assert float(found["a"][0]) == pytest.approx(0.5 * 3 / 5)
    assert float(found["b"][0]) == pytest.approx(0.5 * 4 / 5 + 1.0)


def test_the_periods_fill_the_steps():
    assert LHSPG(periods=3, warmup=0.1, cooldown=0.2).ends(100) == [10, 33, 56, 80]
    with pytest.raises(ValueError, match="do not fit into 5 steps"):
        LHSPG(periods=9).check_length(5, 100)
    with pytest.raises(ValueError, match="at most 4 units are to go; expected at most periods=4"):
        LHSPG(periods=5).check_length(100, 4)


def test_a_period_of_the_paper_by_hand():
    """One redundant unit: lambda = |x| / 4, so x' = x (1 - lambda / |x|) + scale B A, and then B = 0."""
    bench = Bench(steps=20, periods=1, warmup=0.8, target=0.05)
    while bench.done < 16:
        bench.step()
    pruning = bench.pruning
    site = next(site for site in pruning.sites if pruning.now[site.name].units)
    rows, units = pruning.rows[site.name], pruning.now[site.name].units
    before = rows.take(units)
    norm = torch.stack([one.square().sum(1) for one in before]).sum(0).sqrt()
    torch.testing.assert_close(pruning.now[site.name].shrink, norm / 4)
    pruning_step, heard = pruning.after_step, {}

    def after_step(step):
        heard["added"] = rows.added(units)
        pruning_step(step)

    pruning.after_step = after_step
    bench.step()
    for new, x, d in zip(rows.take(units), before, heard["added"], strict=True):
        torch.testing.assert_close(new, x * 0.75 + d)
    assert all((one == 0).all() for one in rows.added(units))


def test_linear_decay_by_hand():
    """Four steps multiply rows and B by 3/4, 2/3, 1/2, 0."""
    bench = Bench(steps=20, periods=1, warmup=0.8, target=0.05, variant="linear_decay")
    while bench.done < 16:
        bench.step()
    site = next(site for site in bench.pruning.sites if bench.pruning.now[site.name].units)
    rows, units = bench.pruning.rows[site.name], bench.pruning.now[site.name].units
    start = rows.take(units)[0]
    for left in (0.75, 0.5, 0.25, 0.0):
        bench.step()
        torch.testing.assert_close(rows.take(units)[0], start * left)
    assert (bench.rows_of(site, units) == 0).all()


def test_merging_keeps_the_function_and_empties_the_optimizer():
    bench = Bench(steps=20)
    for _ in range(6):
        bench.step()
    before = bench.module(**bench.data).logits
    with torch.no_grad():
        bench.pruning.merge()
        torch.testing.assert_close(bench.module(**bench.data).logits, before, rtol=1e-4, atol=1e-4)
    for layer in bench.pruning.layers.values():
        assert (layer.b == 0).all()
        assert all((value == 0).all() for value in bench.optimizer.state[layer.b].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_and_only_coarse_weights_store_a_rest(dtype):
    """A step of 1/1000 is lost in bfloat16 and float16; the rest takes half the bytes of the rows."""
    bench = Bench(steps=20, periods=1, warmup=0.8, target=0.3, variant="linear_decay", dtype=dtype)
    while bench.done < 16:
        bench.step()
    pruning = bench.pruning
    sites = [site for site in pruning.sites if pruning.now[site.name].units]
    start = [pruning.rows[site.name].take(pruning.now[site.name].units) for site in sites]
    with torch.no_grad():
        for done in range(1, 501):
            pruning.shrink(1000, done)
    for site, before in zip(sites, start, strict=True):
        rows, now = pruning.rows[site.name], pruning.now[site.name]
        for new, coarse, old in zip(
            rows.take(now.units, now.rest), rows.take(now.units), before, strict=True
        ):
            torch.testing.assert_close(new, old / 2, rtol=6e-3, atol=1e-7)  # 500 roundings to 16 bits
            torch.testing.assert_close(coarse, old / 2, rtol=1e-2, atol=1e-7)
        held = sum(one.numel() * one.element_size() for one in now.rest if one is not None)
        assert held == (0 if dtype == torch.float32 else sum(one.numel() for one in before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pruner_goes_on_from_its_state_and_its_adapters(dtype):
    whole, killed = Bench(dtype=dtype), Bench(dtype=dtype)
    for _ in range(11):  # in the second period
        whole.step()
        killed.step()
    state = {name: one.clone() for name, one in killed.pruning.state().items()}
    adapters = {name: one.clone() for name, one in killed.module.state_dict().items() if "lora_" in name}
    again = Bench(dtype=dtype)
    again.pruning.restore(state)
    again.module.load_state_dict(adapters, strict=False)
    again.optimizer.load_state_dict(killed.optimizer.state_dict())
    again.done = killed.done
    for name, weight in killed.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name
    while whole.done < whole.steps:
        whole.step()
        again.step()
    assert again.pruning.decided() == whole.pruning.decided()
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight), name


@pytest.mark.parametrize("allocator", [Uniform(), GlobalRank()])
@pytest.mark.parametrize("periods", [3, 5])
def test_every_period_takes_its_part_and_no_site_starves(allocator, periods):
    """round(K (p + 1) / P) of all K units are gone after period p, the lowest that their sites may lose."""
    bench = Bench("llama", steps=30, periods=periods, target=0.25, allocator=allocator)
    pruning, counts = bench.pruning, []
    choose, heard = pruning.redundant, []

    def redundant(saliency, until):
        left = {site.name: [*pruning.kept[site.name]] for site in pruning.sites}
        heard.append((saliency, left, choose(saliency, until)))
        return heard[-1][2]

    pruning.redundant = redundant
    while bench.done < bench.steps:
        period = pruning.period
        bench.step()
        if 0 <= period < pruning.period:
            counts.append({site.name: len(pruning.zero_units(site)) for site in pruning.sites})
    total = sum(pruning.due.values())
    expected = [math.floor(total * (period + 1) / periods + 0.5) for period in range(periods)]
    assert [sum(one.values()) for one in counts] == expected
    assert counts[-1] == pruning.due
    for saliency, left, chosen in heard:
        most = max(float(saliency[name][unit]) for name, units in chosen.items() for unit in units)
        for site in bench.sites:
            name = site.name
            stay = [unit for unit in left[name] if unit not in chosen[name]]
            if site.units - len(stay) < pruning.due[name]:  # it may lose more, but these are not so low
                assert all(float(saliency[name][unit]) >= most for unit in stay)
            elif chosen[name]:
                worst = max(float(saliency[name][unit]) for unit in chosen[name])
                assert all(float(saliency[name][unit]) >= worst for unit in stay)


def test_sites_of_one_redundant_unit_do_not_all_lose_it_in_the_same_period():
    """Four sites that lose one unit each in four periods: one per period, the lowest first."""
    bench = Bench("llama", periods=4, target=0.25)
    pruning = bench.pruning
    pruning.due = {site.name: 1 for site in pruning.sites}
    saliency = {
        site.name: torch.arange(site.units) + 10.0 * place for place, site in enumerate(pruning.sites)
    }
    for period, site in enumerate(pruning.sites, start=1):
        chosen = pruning.redundant(saliency, period)
        assert chosen == {one.name: [0] if one is site else [] for one in pruning.sites}
        pruning.kept[site.name] = pruning.kept[site.name][1:]


def test_units_of_a_protected_site_never_shrink():
    name = "model.layers.0.mlp"
    bench = Bench(target=0.25, allocator=GlobalRank(protect=Protected(frozenset({name}), 4)))
    site = next(site for site in bench.sites if site.name == name)
    while bench.done < bench.steps:
        bench.step()
        assert bench.pruning.kept[name] == [*range(site.units)]
        assert not bench.pruning.now[name].units
    assert bench.pruning.due[name] == 0
    assert sum(bench.pruning.due.values()) > 0
    assert 0.25 <= bench.pruning.removed() <= 0.25 + bench.dearest


def test_surplus_periods_are_empty_and_said_so(capsys):
    """Known only after the warm-up: 2 units in 4 periods, the rounded half of them in every second one."""
    bench = Bench(steps=24, periods=4, target=0.004)
    while bench.done < bench.steps:
        bench.step()
    units = sum(bench.pruning.due.values())
    assert 0 < units < 4
    assert (
        f"{units} units are to go in periods=4, so {4 - units} of these have none" in capsys.readouterr().err
    )
    notes = bench.pruning.detach()
    expected = [math.floor(units * (period + 1) / 4 + 0.5) for period in range(4)]
    done = [one["selected"] for one in notes["periods"]]
    assert [sum(done[: period + 1]) for period in range(4)] == expected
    assert notes["reached"] == pytest.approx(bench.pruning.removed())


@pytest.mark.parametrize(
    ("removed", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (12, 3), (13, 4), (22, 4), (23, 5), (999, 7)]
)
def test_the_most_units_that_can_go(removed, expected):
    """Three units of 4 parameters, then four of 10; what goes is rounded up to whole units."""
    sites = [Site("x.attention", "attention", 4), Site("x.mlp", "mlp", 3)]
    assert most_units(sites, {"x.attention": 10, "x.mlp": 4}, removed) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_byte_of_rest_holds_what_rounding_took(dtype):
    torch.manual_seed(0)
    fine = torch.randn(4000) * 10.0 ** torch.randint(-6, 4, (4000,))
    fine = torch.cat([fine, torch.tensor([0.0, 1.0, 1 - 2.0**-12, 1 + 2.0**-12, -2.0, 3e-8])])
    coarse = fine.to(dtype)
    rest, step = rounded_off(fine, coarse), spacing(coarse.float(), dtype)
    assert rest.dtype == torch.int8
    again = coarse.float() + rest * (step / LEVELS)
    normal = fine.abs() > torch.finfo(dtype).smallest_normal
    assert ((again - fine).abs() <= 0.51 * step / LEVELS)[normal].all()
    assert ((again - fine).abs() <= (coarse.float() - fine).abs() + 1e-12).all()
    one = torch.tensor([1.0, 1.5, 2.0, -1.0])
    eps = torch.finfo(dtype).eps
    assert spacing(one, dtype).tolist() == [eps, eps, 2 * eps, eps]
