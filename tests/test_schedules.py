"""Schedules: when decisions are made."""

import pytest
import torch
from families import FAMILIES, batches, kinds_of, make

import cfsp
from cfsp.collection import collect
from cfsp.criteria.wanda_sp import WandaSP
from cfsp.schedules.base import best_units
from cfsp.sites import UnitView

OPTIONS = {"criterion": "wanda_sp", "allocator": "uniform", "sparsity": 0.4}


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
