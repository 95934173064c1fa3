"""Relative tokens: moments weighted by what the next norm divides by."""

import pytest
import torch
from families import batches, make

import cfsp
from cfsp.compensation.least_squares import LeastSquares
from cfsp.criteria.obs import OBS
from cfsp.model.find_sites import find_sites
from cfsp.model.views import UnitView
from cfsp.statistics.collect import collect
from cfsp.statistics.moments import MOMENTS, RelativeSecondMoment


@pytest.mark.parametrize("tokens", [*MOMENTS])
def test_moments_are_those_of_a_naive_computation(tokens):
    model = make("llama")
    site = find_sites(model)[1]
    seen = []
    consumer = model.get_submodule(site.consumers[0].module)
    handle = consumer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    samples, name = batches(count=5, padded=True), MOMENTS[tokens]
    names = {name, f"{name}_held_out", "input_tokens"}
    with torch.no_grad():
        found = collect(model, [site], samples, names)[site.name]
    handle.remove()
    rows = [
        x[m.bool()]
        for batch, xs in zip(samples, seen, strict=True)
        for x, m in zip(xs, batch["attention_mask"], strict=True)
    ]
    x = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1).double()
    size = (x[:, :-1] @ consumer.weight.T.double()).square().mean(1) + 1e-6
    weight = torch.ones(len(x)).double() if tokens == "equal" else 1 / size
    whole = (x.T * weight) @ x / weight.sum()
    torch.testing.assert_close(found[name], whole, rtol=1e-4, atol=1e-7)
    before = sum(map(len, rows[:7]))
    eighth = slice(before, before + len(rows[7]))
    held = (x[eighth].T * weight[eighth]) @ x[eighth] / weight.sum()
    torch.testing.assert_close(found[f"{name}_held_out"], held, rtol=1e-4, atol=1e-7)
    assert found["input_tokens"] == len(x)


def test_relative_tokens_count_by_what_the_next_norm_divides_by():
    model, data = make("gemma2"), batches(4, size=2, tokens=12)
    site, block, seen = find_sites(model)[1], model.model.layers[1], {}
    hooks = {"x": block.mlp.down_proj, "y": block.post_feedforward_layernorm}
    for name, module in hooks.items():
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach().flatten(0, 1))
        )
    found = collect(model, [site], data, {"relative_second_moment"})[site.name]["relative_second_moment"]
    x, y = (torch.cat(seen[name]).double() for name in hooks)
    weight = 1 / (y.square().mean(1) + block.post_feedforward_layernorm.eps)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    torch.testing.assert_close(found, (x.T * weight) @ x / weight.sum(), rtol=1e-3, atol=1e-9)


def test_relative_tokens_count_by_their_outputs_until_the_norm_adds_more_than_they_have():
    def weights(output):
        return torch.cat([*RelativeSecondMoment().factors(output)]).square().flatten()

    torch.manual_seed(0)
    output = torch.randn(50, 8) * torch.logspace(0, 1, 50)[:, None]
    large, tiny = weights(output * 1e4), weights(output * 1e-6)
    torch.testing.assert_close(large * 1e8, weights(output), rtol=1e-4, atol=0)
    torch.testing.assert_close(tiny, tiny.mean().expand(50), rtol=1e-2, atol=0)


def test_relative_tokens_leave_less_error_relative_to_the_outputs():
    model, data = make("llama"), batches(6, size=4, tokens=20)
    site = find_sites(model)[0]
    consumer, seen = model.get_submodule(site.consumers[0].module), []
    handle = consumer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    stat = collect(model, [site], data, {*MOMENTS.values(), "input_tokens"})[site.name]
    handle.remove()
    x = torch.cat(seen)
    y, keep = x @ consumer.weight.T, range(site.units // 2)
    errors = {}
    for tokens in MOMENTS:
        made = LeastSquares(tokens=tokens, ridge=1e-6).compensate(UnitView(model, site), stat, keep)
        error = x[:, list(keep)] @ made["consumer"].flatten(0, -2) - y
        errors[tokens] = float((error.square().mean(1) / (y.square().mean(1) + 1e-6)).mean())
        errors[tokens, "plain"] = float(error.square().mean())
    assert errors["relative"] < errors["equal"]
    assert errors["equal", "plain"] < errors["relative", "plain"]


def test_relative_tokens_know_no_target():
    with pytest.raises(ValueError, match="expected target=own, or tokens=equal"):
        LeastSquares(tokens="relative", target="residual")
    with pytest.raises(ValueError, match="expected one of equal, relative"):
        OBS(tokens="other")
    with pytest.raises(ValueError, match="expected tokens=equal or metric=plain"):
        OBS(tokens="relative", metric="fisher")
    model = make("llama")
    model.forward = None  # nothing may pass through it before
    parts = {"criterion": OBS(tokens="relative"), "compensation": LeastSquares(target="dense")}
    with pytest.raises(ValueError, match="expected compensation.target=own, or criterion.tokens=equal"):
        cfsp.plan(model, batches(count=8, tokens=16), schedule="blockwise", sparsity=0.5, **parts)
