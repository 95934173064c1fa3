"""Surgery: the properties that make a cut model trustworthy, on every family."""

import copy

import pytest
import torch
from families import DECODERS, all_kinds, batches, kinds_of, make
from plans import kind_sets, logits, ones_for, random_plan

from cfsp.evaluation.latency import cache_of
from cfsp.model.blocks import block_modules, places_of
from cfsp.model.find_sites import find_sites
from cfsp.model.views import unit_cost
from cfsp.plans.gates import Gates
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.surgery import apply
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.collect import collect


def gates_of(plan) -> dict[str, torch.Tensor]:
    gates = {}
    for cut in plan.edits:
        gates[cut.site] = torch.zeros(cut.units)
        gates[cut.site][list(cut.keep)] = 1
    return gates


def test_keeping_everything_changes_no_bit(model, tokens):
    sites = find_sites(model, all_kinds(model))
    before, size, fills = logits(model, tokens), model.num_parameters(), ones_for(sites)
    edits = (Cut(site.name, site.units, tuple(range(site.units)), fills[site.name]) for site in sites)
    apply(PrunePlan(tuple(edits)), sites, model)
    assert torch.equal(logits(model, tokens), before)
    assert model.num_parameters() == size


@pytest.mark.quick_cases(6)
def test_cut_model_equals_gated_model(family, tokens):
    for kinds in kind_sets(make(family)):
        model = make(family)
        sites = find_sites(model, kinds)
        plan = random_plan(sites)
        dense = logits(model, tokens)
        with Gates(model, sites, gates_of(plan)):
            gated = logits(model, tokens)
        assert torch.equal(logits(model, tokens), dense)  # the gates are gone
        apply(plan, sites, model)
        torch.testing.assert_close(logits(model, tokens), gated, rtol=1e-4, atol=2e-4)
        assert not torch.allclose(gated, dense, atol=1e-2)
        ids = tokens["input_ids"]
        if model.can_generate():
            settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
            assert torch.equal(cached, plain)


@pytest.mark.quick_cases(6)
def test_what_a_mixed_plan_leaves_is_predicted_to_the_parameter(family):
    for kinds in kind_sets(make(family)):
        model = make(family)
        sites = find_sites(model, kinds)
        plan = random_plan(sites)
        expected = PartlyCut(model, sites).parameters({cut.site: len(cut.keep) for cut in plan.edits})
        held = PartlyCut(model, sites, plan.edits).parameters()
        apply(plan, sites, model)
        assert model.num_parameters() == held
        if "block" not in kinds or len(kinds) == 1:  # else it depends on which blocks stay
            assert model.num_parameters() == pytest.approx(expected)


def test_an_emptied_site_computes_nothing_and_counts_nothing(family, tokens):
    model = make(family)
    kinds = [
        kind
        for kind, place in places_of(model, block_modules(model)[0]).items()
        if kind == "mlp" or place.whole
    ]
    sites = find_sites(model, kinds)[: len(kinds)]
    fills = ones_for(sites)
    plan = PrunePlan(tuple(Cut(site.name, site.units, (), fills[site.name]) for site in sites))
    with Gates(model, sites, {site.name: torch.zeros(site.units) for site in sites}, fills):
        gated = logits(model, tokens)
    apply(plan, sites, model)
    torch.testing.assert_close(logits(model, tokens), gated, rtol=1e-4, atol=2e-4)
    after = find_sites(model, kinds)
    assert [site.units for site in after if site.block == 0 and site.units] == []
    if model.can_generate():
        ids, settings = tokens["input_ids"], {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, plain)
        with torch.no_grad():  # positions now come from the cache alone
            before = model(input_ids=ids[:, :-1], use_cache=True)
            last = model(input_ids=ids[:, -1:], **cache_of(before)).logits[:, -1]
        torch.testing.assert_close(last, logits(model, {"input_ids": ids})[:, -1], rtol=1e-4, atol=2e-4)


def test_parameters_removed_are_units_times_cost(model):
    sites = find_sites(model, kinds_of(model))
    plan = random_plan(sites)
    before = model.num_parameters()
    expected = sum(
        len(cut.removed) * unit_cost(model, site) for cut, site in zip(plan.edits, sites, strict=True)
    )
    apply(plan, sites, model)
    assert before - model.num_parameters() == expected


def test_fill_equals_channels_held_at_the_constant(model, tokens):
    sites = find_sites(model, kinds_of(model))
    stats = collect(model, sites, batches(), {"input_mean"})
    fills = {site.name: stats[site.name]["input_mean"].float() for site in sites}
    plan = random_plan(sites, fills=fills)
    with Gates(model, sites, gates_of(plan), fills):
        held = logits(model, tokens)
    with Gates(model, sites, gates_of(plan)):
        zeroed = logits(model, tokens)
    apply(plan, sites, model)
    torch.testing.assert_close(logits(model, tokens), held, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(held, zeroed, atol=1e-3)


def test_sites_of_the_cut_model_are_what_the_plan_kept(model):
    kinds = [kind for kind in all_kinds(model) if kind != "block"]
    sites = find_sites(model, kinds)
    plan = random_plan(sites)
    apply(plan, sites, model)
    left = {site.name: site for site in find_sites(model, kinds)}
    for cut, site in zip(plan.edits, sites, strict=True):
        if site.kind == "query_heads":  # those of the groups that went are gone too
            groups = left[site.name.replace("query_heads", "attention")].units
            assert left[site.name].groups == groups
            assert left[site.name].units == len(cut.keep) // site.groups * groups
        else:
            assert left[site.name].units == len(cut.keep)


@pytest.mark.quick_cases(11)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
def test_generation_with_and_without_cache_agrees(family, attention):
    model = make(family)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"transformers has no sdpa for {family}")
    model.set_attn_implementation(attention)
    sites = find_sites(model, kinds_of(model))
    plan = random_plan(sites)
    for kind in kinds_of(model):
        assert len({len(cut.keep) for cut in plan.edits if cut.site.endswith(kind)}) == 2
    apply(plan, sites, model)
    ids = batches(count=1)[0]["input_ids"]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert cached.shape == (2, 24)
    assert torch.equal(cached, plain)


def test_cutting_twice_equals_cutting_once():
    once, twice = make("llama"), make("llama")
    sites = find_sites(once, ["mlp"])
    apply(PrunePlan((Cut(sites[0].name, 40, (1, 5, 7)),)), sites, once)
    apply(PrunePlan((Cut(sites[0].name, 40, (1, 3, 5, 7)),)), sites, twice)
    apply(PrunePlan((Cut(sites[0].name, 4, (0, 2, 3)),)), find_sites(twice, ["mlp"]), twice)
    for left, right in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(left, right)


def test_frozen_weights_stay_frozen():
    model = make("llama")
    model.requires_grad_(False)
    sites = find_sites(model, kinds_of(model))
    apply(random_plan(sites, fills=ones_for(sites)), sites, model)
    assert model.model.layers[0].mlp.down_proj.bias is not None
    assert not any(weight.requires_grad for weight in model.parameters())


def test_half_precision_fill_is_summed_in_full():
    model = make("llama").to(torch.bfloat16)
    site = find_sites(model, ["mlp"])[0]
    down = model.model.layers[0].mlp.down_proj
    fill = torch.randn(40, generator=torch.manual_seed(0))
    exact = down.weight[:, 1:].double() @ fill[1:].double()
    apply(PrunePlan((Cut(site.name, 40, (0,), fill),)), [site], model)
    assert down.bias.dtype == torch.bfloat16
    torch.testing.assert_close(down.bias.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut("model.layers.7.mlp", 40, (0,)), "cuts 'model.layers.7.mlp', which this model lacks"),
        (Cut("model.layers.0.mlp", 41, (0,)), "made for 41 units at 'model.layers.0.mlp'; this model has 40"),
        (Cut("model.layers.0.mlp", 40, (0,), torch.ones(3)), r"fill is \(3,\); expected \(40,\)"),
        (Cut("model.layers.1.mlp", 40, (0,)), "cuts a site twice; expected one edit per site"),
    ],
)
def test_plan_for_another_model_touches_nothing(cut, message):
    model = make("llama")
    before = copy.deepcopy(model.state_dict())
    good = Cut("model.layers.1.mlp", 40, (0, 1))
    with pytest.raises(ValueError, match=message):
        apply(PrunePlan((good, cut)), find_sites(model), model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_depth_shortens_what_the_config_lists_of_every_block_and_nothing_else():
    model = make("gemma2")
    model.config.eos_token_id = [5, 7]
    types = list(model.config.layer_types)
    site = find_sites(model, ["block"])[0]
    apply(PrunePlan((Cut(site.name, 2, (1,)),)), [site], model)
    assert model.config.layer_types == types[1:]
    assert model.config.eos_token_id == [5, 7]
    assert model.config.num_hidden_layers == 1
