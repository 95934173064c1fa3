"""Schedules: when decisions are made."""

import pytest
import torch
from families import FAMILIES, all_kinds, batches, kinds_of, make

import cfsp
from cfsp.criteria.wanda_sp import WandaSP
from cfsp.model.parameter_count import count_parameters
from cfsp.model.views import UnitView
from cfsp.plans.choose import best_units
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.collect import collect

OPTIONS = {"criterion": "wanda_sp", "allocator": "uniform", "sparsity": 0.4}
UNIFORM = {"allocator": "uniform"}


def plans(model, **options):
    kinds = kinds_of(model)
    return [
        cfsp.plan(model, batches(), kinds=kinds, schedule=schedule, **OPTIONS | options)
        for schedule in ("one_shot", "blockwise")
    ]


@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_blockwise_judges_a_block_in_the_model_that_is_cut_before_it(compensation):
    one_shot, blockwise = plans(make("llama"), compensation=compensation)
    first = [cut for cut in blockwise.edits if ".0." in cut.site]
    assert [cut.keep for cut in first] == [cut.keep for cut in one_shot.edits[:2]]
    model = make("llama")
    cfsp.apply(cfsp.PrunePlan(tuple(first)), model)
    sites = [site for site in cfsp.find_sites(model, ["mlp", "attention"]) if site.block == 1]
    stats = collect(model, sites, batches(), {"input_sq_mean", "input_mean"})
    for site, cut in zip(sites, blockwise.edits[2:], strict=True):
        score = WandaSP().score(UnitView(model, site), stats[site.name])
        assert cut.keep == best_units(score, len(cut.keep))
        if compensation == "mean":
            mean = stats[site.name]["input_mean"].float()
            torch.testing.assert_close(cut.fill, mean, rtol=1e-3, atol=1e-4)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_blockwise_on_every_family(family):
    model = make(family)
    weights = [weight.clone() for weight in model.parameters()]
    one_shot, blockwise = plans(model)
    assert [len(cut.keep) for cut in blockwise.edits] == [len(cut.keep) for cut in one_shot.edits]
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    cfsp.apply(blockwise, model)
    assert model(**batches(count=1)[0]).logits.isfinite().all()


def test_blockwise_differs_where_it_should():
    one_shot, blockwise = plans(make("qwen3"))
    assert [cut.keep for cut in one_shot.edits] != [cut.keep for cut in blockwise.edits]


def test_blockwise_takes_widths_from_the_dense_model():
    one_shot, blockwise = plans(make("llama"), criterion="flap", allocator="global_rank", compensation="mean")
    assert [len(cut.keep) for cut in blockwise.edits] == [len(cut.keep) for cut in one_shot.edits]
    assert blockwise.notes == one_shot.notes


def test_blockwise_reads_a_generator_of_batches_once():
    given = (batch for batch in batches())
    plan = cfsp.plan(make("llama"), given, schedule="blockwise", **OPTIONS)
    assert [cut.keep for cut in plan.edits] == [
        cut.keep for cut in cfsp.plan(make("llama"), batches(), schedule="blockwise", **OPTIONS).edits
    ]


def test_a_pass_ends_after_the_last_block_that_is_asked_about():
    model = make("llama")
    sites = [site for site in cfsp.find_sites(model) if site.block == 0]
    needs = {"input_mean", "block_angular"}
    whole = collect(model, sites, batches(), needs)
    calls = []
    handle = model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    cut_short = collect(model, sites, batches(), needs, last_block="model.layers.0")
    handle.remove()
    assert calls == []
    for name in needs:
        assert torch.equal(whole[sites[0].name][name], cut_short[sites[0].name][name])


def shared_kinds(model):
    return [kind for kind in ("mlp", "attention", "query_heads", "hidden") if kind in all_kinds(model)]


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize(
    ("criterion", "compensation"),
    [("flap", "mean"), ("wanda_sp", "none"), ("cfsp", "none"), ("magnitude", "none"), ("taylor", "none")],
)
@pytest.mark.parametrize("family", ["llama", "opt", "phi3", "gpt2", "starcoder2"])
def test_steps_between_gates_are_steps_between_surgeries(family, criterion, compensation):
    """Two steps held as gates, and one surgery, keep what two runs with two surgeries keep."""
    model, twice = make(family), make(family)
    overlapping = criterion in ("magnitude", "taylor")
    kinds = shared_kinds(model) if overlapping else kinds_of(model)
    parts = {"criterion": criterion, "compensation": compensation, "allocator": "uniform", "kinds": kinds}
    plan = cfsp.plan(model, batches(), schedule="iterative", steps=2, sparsity=0.5, **parts)
    cfsp.apply(plan, model)
    whole = count_parameters(twice, cfsp.find_sites(twice, kinds))["sites"]
    for share in (0.25, 0.5):
        left = count_parameters(twice, cfsp.find_sites(twice, kinds))["sites"]
        due = int(share * whole) - (whole - left)
        cfsp.apply(cfsp.plan(twice, batches(), sparsity=due / left, **parts), twice)
    for (name, one), other in zip(model.named_parameters(), twice.parameters(), strict=True):
        assert one.shape == other.shape, name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_one_step_is_one_shot():
    model = make("llama")
    options = {"criterion": "flap", "allocator": "global_rank", "sparsity": 0.4, "kinds": kinds_of(model)}
    one_shot = cfsp.plan(model, batches(), **options)
    one_step = cfsp.plan(model, batches(), schedule="iterative", steps=1, **options)
    assert [cut.keep for cut in one_step.edits] == [cut.keep for cut in one_shot.edits]


def test_more_steps_choose_differently():
    options = {"schedule": "iterative", "criterion": "taylor", "allocator": "uniform", "sparsity": 0.5}
    plans = {steps: cfsp.plan(make("qwen3"), batches(), steps=steps, **options) for steps in (1, 4)}
    keeps = {steps: [cut.keep for cut in plan.edits] for steps, plan in plans.items()}
    assert keeps[1] != keeps[4]


def test_protected_blocks_stay_whole_and_in_place():
    model = make("llama")
    model.model.layers.extend(make("llama", seed=1).model.layers)
    plan = cfsp.plan(
        model, batches(), kinds=["block"], criterion="chance", protect=[0, -1], sparsity=0.5, **UNIFORM
    )
    assert plan.edits[0].keep == (0, 3)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("schedule", [{}, {"schedule": "iterative", "steps": 4}])
@pytest.mark.parametrize("criterion", ["depth", "chance", "magnitude"])
def test_protected_blocks_are_the_same_ones_in_every_step(criterion, schedule):
    model = deep("llama", 8)
    options = {"kinds": ["block"], "criterion": criterion, "protect": [0, 2, 4, -1], "sparsity": 0.5}
    assert cfsp.plan(model, batches(), **UNIFORM, **options, **schedule).edits[0].keep == (0, 2, 4, 7)


def deep(family, blocks):
    """A model of unlike blocks, of which the first has lost most of its neurons."""
    model = make(family)
    while len(model.model.layers) < blocks:
        model.model.layers.extend(make(family, seed=len(model.model.layers)).model.layers)
    model.config.num_hidden_layers = blocks
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
        for weight in block.parameters():
            weight.data.mul_(1 / (1 + index))
    site = cfsp.find_sites(model)[0]
    cfsp.apply(cfsp.PrunePlan((cfsp.Cut(site.name, site.units, (1, 2)),)), model)
    return model


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
@pytest.mark.parametrize("allocator", ["uniform", "global_rank"])
@pytest.mark.parametrize("kinds", [["block"], ["mlp", "block"], ["mlp", "attention", "block", "hidden"]])
def test_at_least_the_asked_share_goes_where_blocks_differ(kinds, allocator, schedule):
    for sparsity in (0.3, 0.6):
        model = deep("llama", 6)
        before = count_parameters(model, cfsp.find_sites(model, kinds))["sites"]
        parts = {"criterion": "magnitude", "allocator": allocator, "schedule": schedule}
        cfsp.apply(cfsp.plan(model, batches(), kinds=kinds, sparsity=sparsity, **parts), model)
        removed = 1 - count_parameters(model, cfsp.find_sites(model, kinds))["sites"] / before
        assert sparsity <= removed + 1e-9 < sparsity + 0.25  # one of six blocks


@pytest.mark.parametrize("schedule", ["one_shot", "blockwise", "iterative"])
def test_a_head_that_two_cuts_remove_is_compensated_once(schedule):
    model = make("llama")
    sites = cfsp.find_sites(model, ["attention", "query_heads"])
    parts = {"criterion": "wanda_sp", "schedule": schedule, "compensation": "mean", "sparsity": 0.6}
    plan = cfsp.plan(model, batches(), kinds=["attention", "query_heads"], **UNIFORM, **parts)
    sample = batches(count=1)[0]
    with torch.no_grad(), PartlyCut(model, sites, plan.edits).gates():
        gated = model(**sample).logits
    cfsp.apply(plan, model)
    with torch.no_grad():
        torch.testing.assert_close(model(**sample).logits, gated, rtol=1e-4, atol=2e-4)


def test_blocks_with_unlike_parameters_are_scored():
    model = make("llama")
    sites = cfsp.find_sites(model, ["mlp", "attention"])[:2]
    fill = torch.ones(sites[0].units)
    edits = cfsp.Cut(sites[0].name, sites[0].units, (), fill), cfsp.Cut(sites[1].name, sites[1].units, ())
    cfsp.apply(cfsp.PrunePlan(edits), model)
    for criterion in ("depth", "magnitude", "taylor"):
        plan = cfsp.plan(model, batches(), kinds=["block"], criterion=criterion, sparsity=0.005, **UNIFORM)
        assert len(plan.edits[0].keep) == 1


def test_query_heads_go_in_equal_numbers_of_every_group():
    assert best_units(torch.tensor([1.0, 2, 9, 8]), 2, groups=2) == (1, 2)
    assert best_units(torch.tensor([1.0, 2, 9, 8]), 2) == (2, 3)


def test_a_site_may_lose_everything_if_that_is_allowed():
    model = make("llama")
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(model.model.layers[1].mlp, name).weight.mul_(1e-3)
    options = {"criterion": "magnitude", "allocator": "global_rank", "sparsity": 0.5}
    assert len(cfsp.plan(model, batches(), **options).edits[1].keep) == 1
    plan = cfsp.plan(model, batches(), allow_empty=True, **options)
    assert plan.edits[1].keep == ()
    cfsp.apply(plan, model)
    assert model(**batches(count=1)[0]).logits.isfinite().all()


def test_sites_that_share_weights_meet_the_budget():
    model = make("llama")
    kinds = all_kinds(model)
    before = count_parameters(model, cfsp.find_sites(model, kinds))
    plan = cfsp.plan(model, batches(), kinds=kinds, criterion="magnitude", sparsity=0.6, **UNIFORM)
    cfsp.apply(plan, model)
    after = count_parameters(model, cfsp.find_sites(model, kinds))
    removed = (before["sites"] - after["sites"]) / before["sites"]
    assert 0.6 <= removed < 0.75  # two blocks: a step of "block" is a large one


def test_steps_go_on_where_a_site_has_lost_everything():
    model = make("llama")
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(model.model.layers[1].mlp, name).weight.mul_(1e-3)
    options = {"criterion": "magnitude", "allocator": "global_rank", "sparsity": 0.8, "allow_empty": True}
    plan = cfsp.plan(model, batches(), schedule="iterative", steps=3, compensation="mean", **options)
    assert [len(cut.keep) for cut in plan.edits] == [16, 0]
    assert plan.edits[1].fill.abs().sum() > 0
    cfsp.apply(plan, model)
    assert model(**batches(count=1)[0]).logits.isfinite().all()
