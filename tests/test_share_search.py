"""TEAL's search: each matrix of an MLP reads the share of its inputs that its block's error allows."""

import pytest
import torch
from families import batches, make
from routed_models import install_thresholds

import cfsp
from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import routed_mlps
from cfsp.model.routers import ThresholdRouter
from cfsp.plans.plan import PrunePlan
from cfsp.schedules.mlp_samples import sample_mlps
from cfsp.schedules.route_makers import Threshold
from cfsp.schedules.routed import RoutedOnce
from cfsp.schedules.share_search import BlockTrial, greedy_shares


@pytest.mark.parametrize("active", [0.97, 0.5, 0.333, 0.05])
@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1], [5, 3, 1]])
def test_the_mean_over_all_weights_is_the_asked_share(sizes, active):
    shares = greedy_shares(sizes, active, lambda shares: sum((1 - one) ** 2 for one in shares))
    mean = sum(size * share for size, share in zip(sizes, shares, strict=True)) / sum(sizes)
    assert mean == pytest.approx(active, abs=1e-9)
    assert all(0 <= share <= 1 for share in shares)


def test_a_step_takes_weights_where_the_error_grows_least():
    shares = greedy_shares([1, 1, 1], 0.5, lambda shares: 4 * (1 - shares[0]) + (1 - shares[2]) ** 2)
    assert shares == pytest.approx([1, 0, 0.5], abs=0.01)  # the second is free, the third is cheap
    equal = greedy_shares([1, 1], 0.6, lambda shares: sum((1 - one) ** 2 for one in shares))
    assert equal == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_the_error_is_that_of_the_routed_block_without_padding(family):
    model, data = make(family), batches(3, padded=True)
    site, samples = next(iter(sample_mlps(model, find_sites(model), data)))
    router = Threshold().make(samples, 0.4, seed=0)
    found = samples.trial.error(router)
    dense = first_block(model, data)
    install_thresholds(model, site, router)
    routed = first_block(model, data)
    expected = (routed - dense).square().sum(1) / dense.square().sum(1)
    assert found == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found > 1e-6


def first_block(model, data):
    """The output of the first block for the tokens that are no padding. [tokens, hidden]"""
    found = []
    with torch.no_grad():
        for batch in data:
            states = model(**batch, output_hidden_states=True).hidden_states[1]
            found.append(states[batch["attention_mask"].bool()])
    return torch.cat(found)


def planted():
    """A model in whose first MLP small inputs matter to `up_proj`, and not to `gate_proj`."""
    model = make("llama")
    block = model.model.layers[0]
    block.post_attention_layernorm.weight.data[16:] *= 1e-3
    block.mlp.up_proj.weight.data[:, 16:] *= 1e3
    return model


@pytest.mark.parametrize("maker", [{}, {"per_token": True}])
def test_a_matrix_whose_small_inputs_do_not_matter_reads_fewer(maker):
    model, data = planted(), batches(4, size=4, tokens=20)
    samples = next(iter(sample_mlps(model, find_sites(model)[:1], data)))[1]
    router = Threshold(search="greedy", **maker).make(samples, 0.8, seed=0)
    gate, up = (float(router.thin(samples.inputs, part).float().mean()) for part in (0, 1))
    down = float(router.close(samples.activations).float().mean())
    assert gate < 0.6
    assert min(up, down) > 0.8
    assert (gate + up + down) / 3 == pytest.approx(0.8, abs=0.02)
    same = Threshold(**maker).make(samples, 0.8, seed=0)
    assert samples.trial.error(router) < 0.5 * samples.trial.error(same)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_searched_plan_has_the_asked_share_and_survives_the_disk(family, weighted, tmp_path):
    model, data = make(family), batches(4, size=4, tokens=20)
    maker = Threshold(search="greedy", weighted=weighted, per_token=weighted)
    schedule = RoutedOnce(maker=maker, active=0.5, sparsity=0.0)
    plan = cfsp.plan(model, data, criterion="learned", allocator="uniform", schedule=schedule)
    plan.save(tmp_path)
    again = make(family)
    cfsp.apply(plan, model)
    cfsp.apply(PrunePlan.load(tmp_path), again)
    with torch.no_grad():
        assert torch.equal(model(**data[0]).logits, again(**data[0]).logits)
    for one in routed_mlps(model).values():
        sizes = [model.get_submodule(path).weight.numel() for path in (*one.producers, one.consumer)]
        shares = one.shares().mean(0)
        mean = sum(size * float(share) for size, share in zip(sizes, shares, strict=True)) / sum(sizes)
        assert mean == pytest.approx(0.5, abs=0.06)  # later blocks read what the first ones change


def test_a_share_of_one_reads_everything():
    model = make("llama")
    samples = next(iter(sample_mlps(model, find_sites(model), batches(1))))[1]
    router = Threshold().router(samples, [1.0, 1.0, 1.0])
    assert isinstance(router, ThresholdRouter)
    full = Threshold(search="greedy").make(samples, 1 - 1e-12, seed=0)
    assert bool(full.thin(samples.inputs, 0).all())
    assert bool(full.close(torch.zeros(1, 40)).all())
    assert samples.trial.error(full) == 0


def test_only_the_first_batches_are_computed_again(monkeypatch):
    monkeypatch.setattr("cfsp.schedules.share_search.TRIED", 25)
    samples = next(
        iter(sample_mlps(make("llama"), find_sites(make("llama")), batches(5, size=2, tokens=10)))
    )[1]
    assert isinstance(samples.trial, BlockTrial)
    assert (len(samples.trial.calls), samples.trial.tokens) == (2, 40)


def test_an_unknown_search_is_refused():
    with pytest.raises(ValueError, match="search='best': expected one of none, greedy"):
        Threshold(search="best")
