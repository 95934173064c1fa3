"""Scales: one factor per kept unit, as a naive solve finds it, and never worse than none."""

import pytest
import torch
from families import batches, make

import cfsp
from cfsp.compensation.scale import Scale
from cfsp.model.find_sites import find_sites
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.collect import collect
from cfsp.statistics.regression import channels, damping, squared_error, unit_factors

SAMPLES = {"count": 8, "size": 2, "tokens": 24}


def random_case(span, seed=0, units=6, outputs=5, tokens=200):
    """Inputs with a constant [tokens, channels + 1], targets [tokens, outputs] and W [channels, outputs]."""
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(*shape, generator=generator).double() for shape in ((tokens, units * span),) * 2)
    x = next(made) @ torch.randn(units * span, units * span, generator=generator).double()
    weight = torch.randn(units * span, outputs, generator=generator).double()
    target = x @ weight + torch.randn(tokens, outputs, generator=generator).double()
    return torch.cat([x, torch.ones(tokens, 1).double()], 1), target, weight


def given(x, weight, keep, span):
    """What each kept unit gives. [tokens * outputs, kept]"""
    parts = [x[:, u * span : (u + 1) * span] @ weight[u * span : (u + 1) * span] for u in keep]
    return torch.stack(parts, -1).flatten(0, 1)


@pytest.mark.parametrize("scale", ["mean", "median"])
@pytest.mark.parametrize("span", [1, 3])
def test_factors_are_those_of_a_naive_solve(span, scale):
    x, target, weight = random_case(span)
    keep, ridge = [0, 2, 5], 0.1
    places = channels(keep, span, x.device)
    found = unit_factors(x.T @ x / len(x), x.T @ target / len(x), weight, places, span, ridge, scale=scale)
    y, t = given(x, weight, keep, span), target.flatten()
    penalty = damping((y.T @ y / len(x)).diagonal(), ridge, scale)
    # The penalty as rows that ask each factor to be 1.
    rows = torch.cat([y / len(x) ** 0.5, penalty.sqrt() * torch.eye(3).double()])
    aims = torch.cat([t / len(x) ** 0.5, penalty.sqrt() * torch.ones(3).double()])
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, aims[:, None]).solution[:, 0])


@pytest.mark.parametrize("span", [1, 3])
def test_no_factors_are_worse_than_none(span):
    for seed in range(5):
        x, target, weight = random_case(span, seed)
        moment, cross = x.T @ x / len(x), x.T @ target / len(x)
        places = channels([1, 3, 4], span, x.device)
        kept, errors = weight[places], []
        for ridge in (1e-9, 1e-3, 1.0, 1e9):
            s = unit_factors(moment, cross, weight, places, span, ridge).repeat_interleave(span)
            errors.append(float(squared_error(moment, cross, places, kept * s[:, None], None)))
        none = float(squared_error(moment, cross, places, kept, None))
        assert errors == sorted(errors)
        assert errors[0] < none
        assert errors[-1] == pytest.approx(none, rel=1e-5)
        assert all(error <= none + 1e-9 for error in errors)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_the_consumer_is_scaled_unit_by_unit(kind):
    """The cut consumer gives less error on the calibration tokens, from whole passes of the model."""
    model, data = make("llama"), batches(**SAMPLES)
    site = find_sites(model, [kind])[0]
    stat = collect(model, [site], data, Scale.needs)[site.name]
    view, keep = PartlyCut(model, [site]).view(site), [0] if kind == "attention" else [0, 3, 7, 8]
    fitted = Scale(ridge=1e-6).compensate(view, stat, keep)["consumer"].double()
    weight = view.consumers()[0].flatten(0, 1).double()
    places = channels(keep, view.span, weight.device)
    ratio = (fitted / weight[places]).view(len(keep), -1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-6)
    seen = []
    module = model.get_submodule(site.consumers[0].module)
    handle = module.register_forward_hook(lambda _, args, output: seen.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    handle.remove()
    x = torch.cat(seen)
    errors = [(x @ weight - x[:, places] @ one).square().sum() for one in (fitted, weight[places])]
    assert errors[0] < errors[1]


def test_all_units_kept_change_nothing():
    model = make("llama")
    site = find_sites(model, ["mlp"])[0]
    stat = collect(model, [site], batches(**SAMPLES), Scale.needs)[site.name]
    view = PartlyCut(model, [site]).view(site)
    found = Scale().compensate(view, stat, range(site.units))["consumer"]
    torch.testing.assert_close(found, view.consumers()[0].flatten(0, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["dense", "residual"])
def test_other_targets_take_blockwise(target):
    options = {"criterion": "wanda_sp", "allocator": "uniform", "compensation": Scale(target=target)}
    plan = cfsp.plan(make("llama"), batches(**SAMPLES), schedule="blockwise", sparsity=0.4, **options)
    assert all(cut.consumer.isfinite().all() for cut in plan.edits)
    with pytest.raises(ValueError, match="expected schedule=blockwise"):
        cfsp.plan(make("llama"), batches(**SAMPLES), sparsity=0.4, **options)


@pytest.mark.parametrize("wrong", [{"ridge": 0}, {"scale": "max"}, {"target": "mine"}, {"ridge": "auto"}])
def test_bad_options(wrong):
    with pytest.raises(ValueError, match="expected"):
        Scale(**wrong)


def test_a_unit_that_gives_nothing_and_a_ridge_that_is_too_small():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    options = {"criterion": "magnitude", "allocator": "uniform"}
    plan = cfsp.plan(model, batches(**SAMPLES), compensation=Scale(), **options)
    assert all(cut.consumer.isfinite().all() for cut in plan.edits)
    ones = torch.ones(3, 3).double()
    with pytest.raises(
        ValueError, match="mine=1e-30 does not make .* positive definite; expected a larger one"
    ):
        unit_factors(ones, ones[:, :1], ones[:2, :1], torch.tensor([0, 1]), 1, 1e-30, "mine")
