"""Error curves: widths that the whole model bears best, under a budget."""

import itertools
import sys

import numpy as np
import pytest
import torch
from families import LLAMA, batches, make
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

import cfsp
from cfsp.allocators.base import Budget
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.ladders import hull
from cfsp.allocators.uniform import Uniform
from cfsp.model.sites import Site
from cfsp.passes.hidden_states import PLACES

COST = {"a": 3, "b": 5}
SITES = [Site(name, "mlp", 12, block=number) for number, name in enumerate(COST)]


def stats_of(**curves):
    return {
        name: {"error_curve": torch.tensor(points, dtype=torch.float64)} for name, points in curves.items()
    }


def curve(scale, power=2):
    return [(width, scale * (1 - width / 12) ** power) for width in range(1, 13)]


@pytest.mark.parametrize("budget", [20, 41, 55, 67, 80, 95])
def test_no_other_widths_within_the_budget_are_better(budget):
    curves = {"a": curve(1.0), "b": curve(2.0)}
    keep = ErrorCurves().allocate(SITES, {}, stats_of(**curves), Budget.of(SITES, COST, budget))
    errors = {name: dict(points) for name, points in curves.items()}

    def error(widths):
        return sum(errors[name][width] for name, width in widths.items())

    fitting = [
        widths
        for widths in (
            dict(zip(COST, pair, strict=True)) for pair in itertools.product(range(1, 13), repeat=2)
        )
        if sum(widths[name] * COST[name] for name in COST) <= budget
    ]
    spent = sum(keep[name] * COST[name] for name in COST)
    assert budget - spent < min(COST.values())
    # Within the step by which a budget that both prices divide badly must be missed.
    assert error(keep) <= min(map(error, fitting)) + 0.1


@pytest.mark.parametrize("gone", [1, 40, 50, 100, 101, 110, 150, 199, 240, 395])
def test_no_key_value_group_goes_where_neurons_do(gone):
    sites = [Site("heads", "attention", 4, block=0), Site("neurons", "mlp", 400, block=0)]
    cost = {"heads": 100, "neurons": 1}
    curves = stats_of(
        heads=[(width, 4.0 - width) for width in range(1, 5)],
        neurons=[(width, 0.0101 * (400 - width)) for width in range(1, 401)],
    )
    keep = ErrorCurves().allocate(sites, {}, curves, Budget.of(sites, cost, 800 - gone))
    errors = {heads + 0.0101 * max(0, gone - 100 * heads) for heads in range(4) if gone - 100 * heads < 400}
    assert 4 - keep["heads"] + 0.0101 * (400 - keep["neurons"]) == pytest.approx(min(errors))


def test_a_site_that_matters_less_keeps_less():
    keep = ErrorCurves().allocate(SITES, {}, stats_of(a=curve(0.1), b=curve(5.0)), Budget.of(SITES, COST, 60))
    assert keep["a"] < keep["b"]


def test_widths_are_multiples_and_protected_blocks_whole():
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    keep = ErrorCurves(round_to=4).allocate(SITES, {}, curves, Budget.of(SITES, COST, 70))
    assert all(width % 4 == 0 for width in keep.values())
    assert ErrorCurves(protect=[0]).allocate(SITES, {}, curves, Budget.of(SITES, COST, 60))["a"] == 12


def test_a_budget_in_another_currency():
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    for name, price in (("a", 7.0), ("b", 1.0)):
        curves[name]["unit_cost"] = torch.tensor(price)
    keep = ErrorCurves(budget="macs").allocate(
        SITES, {}, curves, Budget.of(SITES, COST, 48)
    )  # half of the parameters' cost
    spared = 7 * (12 - keep["a"]) + (12 - keep["b"])
    assert 48 <= spared < 55


def test_hull_is_convex_and_nowhere_above():
    widths = np.arange(1, 30)
    errors = np.random.default_rng(0).random(29) + (30 - widths) ** 2 / 100
    convex = hull(widths, errors)
    assert (convex <= errors + 1e-12).all()
    assert (np.diff(convex, 2) >= -1e-9).all()
    assert convex[0] == errors[0]
    assert convex[-1] == errors[-1]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("budget", ["parameters", "macs"])
@pytest.mark.parametrize("compensation", ["none", "mean", "least_squares"])
def test_an_only_unit_may_go_where_sites_may_be_empty(budget, compensation):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 1})).eval()
    parts = {"criterion": "obs", "compensation": compensation, "kinds": ["mlp", "attention"]}
    kept = {}
    for allocator in (Uniform(allow_empty=True), ErrorCurves(allow_empty=True, budget=budget)):
        plan = cfsp.plan(model, batches(), sparsity=0.97, allocator=allocator, **parts)
        kept[allocator] = [len(cut.keep) for cut in plan.edits]
        curves = plan.notes.get("error_curves", {})
    assert all(0 in widths for widths in kept.values())
    (without, loss), whole = curves["model.layers.0.attention"]
    assert (without, whole) == (0, [1, 0])
    assert loss > 0


def test_a_site_that_does_nothing_goes_as_a_whole_and_is_measured_without_it():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    model.model.layers[1].mlp.down_proj.weight.data *= 1e-4
    allocator = ErrorCurves(shares=[0.8], allow_empty=True)
    plan = cfsp.plan(model, batches(), sparsity=0.5, allocator=allocator, criterion="wanda_sp")
    kept = {cut.site: len(cut.keep) for cut in plan.edits}
    assert kept["model.layers.1.mlp"] == 0
    assert kept["model.layers.0.mlp"] == 40
    (nothing, without), _, whole = plan.notes["error_curves"]["model.layers.0.mlp"]
    assert (nothing, whole) == (0, [40, 0])
    data = batches()[:4]
    dense = [model(**batch).logits.detach().log_softmax(-1) for batch in data]
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    cut = [model(**batch).logits.detach().log_softmax(-1) for batch in data]
    total = sum(
        torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="sum")
        for given, wanted in zip(cut, dense, strict=True)
    )
    tokens = sum(batch["input_ids"].numel() for batch in data)
    assert without == pytest.approx(float(total) / tokens, rel=1e-3)


def test_a_site_with_nothing_to_try_stays_whole():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 1})).eval()
    parts = {"criterion": "obs", "compensation": "least_squares", "kinds": ["mlp", "attention"]}
    for budget in ("parameters", "macs"):
        plan = cfsp.plan(model, batches(), sparsity=0.2, allocator=ErrorCurves(budget=budget), **parts)
        widths = {cut.site: len(cut.keep) for cut in plan.edits}
        assert widths["model.layers.0.attention"] == widths["model.layers.1.attention"] == 1
        assert widths["model.layers.0.mlp"] + widths["model.layers.1.mlp"] < 80


def test_what_cannot_be_probed_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match="expected only mlp and attention, and schedule=one_shot or blockwise"
    ):
        cfsp.plan(make("llama"), batches(), schedule="iterative", allocator="error_curves", sparsity=0.5)
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    curves["a"]["unit_cost"], curves["b"]["unit_cost"] = torch.tensor(1e-9), torch.tensor(1.0)
    with pytest.raises(
        ValueError, match="budget=macs is a share of what the sites take; expected sparsity_of=s"
    ):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(budget="macs"), sparsity_of="model")
    monkeypatch.setattr("cfsp.schedules.probes.probe_once", None)  # refused before anything is probed
    with pytest.raises(ValueError, match="would leave a width of zero units"):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(round_to=16), sparsity=0.99)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot save the last 3.25 that the sparsity asks for"):
        ErrorCurves(budget="macs", protect=[1]).allocate(SITES, {}, curves, Budget.of(SITES, COST, 70))


@pytest.mark.parametrize("options", [{"shares": []}, {"shares": [1.0]}, {"batches": 0}, {"budget": "time"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        ErrorCurves(**options)


def test_hidden_states_give_the_same_plan_wherever_they_are():
    model = make("llama")
    parts = {
        "criterion": "obs",
        "compensation": "least_squares",
        "target": "residual",
        "schedule": "blockwise",
    }
    parts |= {"allocator": "uniform", "kinds": ["mlp", "attention"]}
    one, *others = (cfsp.plan(model, batches(), hidden_states=place, **parts) for place in PLACES)
    for other in others:
        for cut, same in zip(one.edits, other.edits, strict=True):
            assert cut.keep == same.keep
            assert torch.equal(cut.consumer, same.consumer)


def test_modules_are_left_as_they_were():
    model = make("llama")
    model.model.layers[0].forward = theirs = model.model.layers[0].forward  # as accelerate's hooks do
    cfsp.plan(model, batches(), criterion="obs", allocator="error_curves", schedule="blockwise")
    assert model.model.layers[0].forward is theirs
    for module in model.modules():
        assert ("forward" in vars(module)) == (module is model.model.layers[0])
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert sys.getrefcount(model) < 10
