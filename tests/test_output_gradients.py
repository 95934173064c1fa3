"""Output gradients: the Fisher factor against its definition, and OBS by what an error costs the loss."""

import pytest
import torch
from families import DECODERS, batches, kinds_of, make
from transformers import FalconConfig, FalconForCausalLM

import cfsp
from cfsp.criteria.obs import OBS
from cfsp.model.find_sites import find_sites
from cfsp.model.views import UnitView
from cfsp.statistics.collect import collect

NEED = "output_gradient_moment"


def by_definition(model, site, samples):
    """E[g g^T] with the loss summed over tokens: each row of g is the gradient of an added error."""
    total, count = 0, 0
    consumer = model.get_submodule(site.consumers[0].module)
    for batch in samples:
        for ids, mask in zip(*batch.values(), strict=True):
            error = torch.zeros(len(ids), consumer.weight.shape[0], requires_grad=True)
            handle = consumer.register_forward_hook(lambda module, inputs, output, e=error: output + e)
            logits = model(input_ids=ids[None], attention_mask=mask[None]).logits[0, :-1]
            handle.remove()
            labels = ids.masked_fill(mask == 0, -100)[1:]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, error)
            total, count = total + gradient.T @ gradient, count + int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize("checkpointing", [False, True])
def test_is_the_mean_product_of_gradients(checkpointing):
    model, samples = make("llama"), batches(padded=True)
    for site in find_sites(model, ["mlp", "attention"]):
        found = collect(model, [site], samples, {NEED}, checkpointing=checkpointing)[site.name][NEED]
        torch.testing.assert_close(found.float(), by_definition(model, site, samples), rtol=1e-3, atol=1e-8)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_neither_batches_nor_other_gradients_change_it():
    model, samples = make("llama"), batches(padded=True)
    sites = find_sites(model, ["mlp"])
    whole = collect(model, sites, samples, {NEED})
    rows = [{name: value[i : i + 1] for name, value in one.items()} for one in samples for i in range(2)]
    both = collect(model, sites, rows, {NEED, "taylor_first"})
    for site in sites:
        torch.testing.assert_close(whole[site.name][NEED], both[site.name][NEED])
        assert "taylor_first" in both[site.name]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", DECODERS)
def test_every_family_can_be_scored(family):
    model = make(family)
    for site in find_sites(model, [kind for kind in kinds_of(model) if kind != "block"]):
        stats = collect(model, [site], batches(), OBS(metric="fisher").needs)[site.name]
        assert OBS(metric="fisher").score(UnitView(model, site), stats).isfinite().all()


def test_an_output_that_is_added_to_in_place_can_be_watched():
    """Falcon with parallel attention adds to the MLP's output."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
    model = FalconForCausalLM(
        FalconConfig(**sizes, parallel_attn=True, new_decoder_architecture=False)
    ).eval()
    site, samples = find_sites(model, ["mlp"])[0], batches()
    found = collect(model, [site], samples, {NEED})[site.name][NEED]
    torch.testing.assert_close(found.float(), by_definition(model, site, samples), rtol=1e-3, atol=1e-8)


def test_a_gradient_that_is_not_finite_is_named():
    model, site = make("llama"), find_sites(make("llama"), ["mlp"])[1]
    model.get_submodule(site.consumers[0].module).register_full_backward_hook(
        lambda module, given, out: tuple(None if one is None else one * float("nan") for one in given)
    )
    with pytest.raises(ValueError, match="is NaN or infinite at model.layers.0.mlp; check the weights"):
        collect(model, find_sites(model, ["mlp"]), batches(), {NEED})


def test_a_classifier_is_scored_by_its_labels():
    model = make("bert")
    samples = [one | {"labels": one["input_ids"]} for one in batches()]
    site = find_sites(model, ["mlp"])[0]
    stats = collect(model, [site], samples, OBS(metric="fisher").needs)[site.name]
    assert OBS(metric="fisher").score(UnitView(model, site), stats).isfinite().all()
    assert float(stats[NEED].diagonal().sum()) > 0


def test_exchanges_count_errors_by_the_metric_too():
    weight = torch.tensor([[9.0, 0.0], [0.0, 1.0], [4.0, 0.5]])
    view, stat = moments_and_view(weight, torch.diag(torch.tensor([1e-9, 2.0], dtype=torch.float64)))
    view.groups = 1
    assert tuple(OBS(swaps=3).refine(view, stat, (1,))) == (0,)
    assert tuple(OBS(metric="fisher", ridge=1e-6, swaps=3).refine(view, stat, (0,))) == (1,)


def test_a_plan_block_by_block_measures_it_once_in_the_dense_model(monkeypatch):
    model, samples, passes = make("llama"), batches(count=8, tokens=16), []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: passes.append(self) or backward(self))
    parts = {"kinds": ["mlp"], "allocator": "uniform", "compensation": "least_squares", "sparsity": 0.5}
    plans = {
        metric: cfsp.plan(model, samples, criterion=OBS(metric=metric), schedule="blockwise", **parts).edits
        for metric in ("plain", "fisher")
    }
    assert all(len(cut.keep) < cut.units for cut in plans["fisher"])
    assert [cut.keep for cut in plans["plain"]] != [cut.keep for cut in plans["fisher"]]
    assert len(passes) == sum(len(one["input_ids"]) for one in samples)


def test_a_site_without_a_consumer_is_refused():
    model = make("llama")
    with pytest.raises(ValueError, match="leave 'block' out of sites"):
        collect(model, find_sites(model, ["block"]), batches(), {NEED})


def moments_and_view(weight, fisher):
    """Uncorrelated channels of mean square 1."""
    channels = len(weight)
    site = type("View", (), {"units": channels, "span": 1, "name": "site"})()
    site.consumers = lambda: [weight[:, None]]
    site.members = lambda: [weight[:, None]]
    moment = torch.eye(channels + 1, dtype=torch.float64)
    return site, {"input_second_moment": moment, "input_tokens": torch.tensor(99), NEED: fisher}


def test_outputs_that_the_loss_ignores_cost_nothing():
    weight = torch.tensor([[9.0, 0.0], [0.0, 1.0], [4.0, 0.5]])
    view, stat = moments_and_view(weight, torch.diag(torch.tensor([1e-9, 2.0], dtype=torch.float64)))
    plain, fisher = OBS().score(view, stat), OBS(metric="fisher", ridge=1e-6).score(view, stat)
    assert plain.argsort().tolist() == [1, 2, 0]
    assert fisher.argsort().tolist() == [0, 2, 1]
    # 1/2 d^T G d of unit 1, d = its own output, per parameter (two columns of one weight)
    assert float(fisher[1]) == pytest.approx(0.5 * 2.0 * 1.0 / 2, rel=1e-3)


def test_a_plan_by_it_differs_and_an_unknown_metric_is_refused():
    model = make("llama")
    parts = {"kinds": ["mlp"], "allocator": "uniform", "compensation": "least_squares", "sparsity": 0.5}
    plain, fisher = (
        cfsp.plan(model, batches(count=8, tokens=16), criterion=OBS(metric=metric), **parts).edits
        for metric in ("plain", "fisher")
    )
    assert [cut.keep for cut in plain] != [cut.keep for cut in fisher]
    with pytest.raises(ValueError, match="expected one of plain, fisher"):
        OBS(metric="other")
