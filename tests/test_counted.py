"""Tokens that count: attention sees the others, and nothing that calibration measures is of them."""

from contextlib import ExitStack

import pytest
import torch
from families import batches, make
from torch.nn import functional as F

import cfsp
from cfsp.allocators.cfsp import CFSP
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.uniform import Uniform
from cfsp.compensation.least_squares import LeastSquares
from cfsp.model.find_sites import find_sites
from cfsp.passes.walk import walking
from cfsp.schedules.dense_answers import log_probabilities
from cfsp.schedules.mlp_samples import sample_mlps
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.targets import target_moments
from cfsp.statistics.collect import collect
from cfsp.statistics.knowledge import Knowledge
from cfsp.statistics.knowledge_pass import Judge, next_token_loss
from cfsp.statistics.losses import split_samples


def answered(count=4, size=2, tokens=12):
    """Batches padded on the right whose first tokens are prompts: 3 of the first row, 4 of the second, ..."""
    made = batches(count=count, size=size, tokens=tokens, padded=True)
    for batch in made:
        begun = torch.arange(size)[:, None] + 3
        batch["counted"] = batch["attention_mask"] * (torch.arange(tokens) >= begun)
    return made


def shown(batch):
    return {name: tensor for name, tensor in batch.items() if name != "counted"}


def heard(model, path, data):
    """Inputs and outputs of a module at the tokens that count, from whole passes. [tokens, channels] x 2"""
    inputs, outputs = [], []

    def hear_it(module, args, output):
        inputs.append(args[0])
        outputs.append(output)

    hook = model.get_submodule(path).register_forward_hook(hear_it)
    with torch.no_grad():
        for batch in data:
            model(**shown(batch))
    hook.remove()
    mask = torch.cat([batch["counted"].flatten() for batch in data]).bool()
    return [torch.cat([one.flatten(0, -2) for one in found])[mask].double() for found in (inputs, outputs)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_statistics_are_of_the_answers_alone(family):
    model, data = make(family).double(), answered(count=9)
    sites = find_sites(model, ["mlp", "attention"])
    needs = {"input_mean", "input_sq_mean", "input_var", "input_second_moment", "input_tokens"}
    needs |= {"input_second_moment_held_out", "block_tokens", "input_var_released"}
    found = collect(model, sites, data, needs)
    for site in sites:
        x, _ = heard(model, site.consumers[0].module, data)
        stat = {name: value.double() for name, value in found[site.name].items()}
        assert stat["input_tokens"] == stat["block_tokens"] == len(x)
        torch.testing.assert_close(stat["input_mean"], x.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(stat["input_sq_mean"], x.square().mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(stat["input_var"], x.var(0, correction=0), rtol=1e-4, atol=1e-7)
        moment = stat["input_second_moment"]
        torch.testing.assert_close(moment[:-1, :-1], x.T @ x / len(x), rtol=1e-4, atol=1e-6)
        held = heard(model, site.consumers[0].module, [one_row(data, 7), one_row(data, 15)])[0]
        of_held = stat["input_second_moment_held_out"][:-1, :-1]
        torch.testing.assert_close(of_held, held.T @ held / len(x), rtol=1e-4, atol=1e-6)


def one_row(data, number):
    batch = data[number // 2]
    return {name: tensor[number % 2 : number % 2 + 1] for name, tensor in batch.items()}


def test_attention_still_sees_the_prompt():
    """Other prompts, other statistics of the same answers."""
    model, data = make("llama"), answered()
    sites = find_sites(model, ["mlp"])
    other = [{**batch, "input_ids": batch["input_ids"].clone()} for batch in data]
    for batch in other:
        batch["input_ids"][:, :3] = (batch["input_ids"][:, :3] + 1) % 9 + 2
    first, second = (collect(model, sites, one, {"input_sq_mean"}) for one in (data, other))
    assert not torch.allclose(*(one[sites[0].name]["input_sq_mean"] for one in (first, second)), rtol=1e-3)


def test_targets_are_of_the_answers_alone():
    model, data = make("llama"), answered(count=9)
    site = find_sites(model, ["mlp"])[0]
    with walking(make("llama"), data) as dense, walking(model, data) as pruned:
        found = target_moments(dense, pruned, site, "dense", PartlyCut(model, [site]).gates())
    x, output = heard(model, site.consumers[0].module, data)
    expected = x.T @ output / len(x)
    torch.testing.assert_close(found["target_moment"][:-1], expected, rtol=1e-4, atol=1e-6)
    x, output = heard(model, site.consumers[0].module, [one_row(data, 7), one_row(data, 15)])
    torch.testing.assert_close(
        found["target_moment_held_out"][:-1] / found["target_moment_held_out"][-1:].abs().max(),
        x.T @ output / (found["target_moment_held_out"][-1:].abs().max() * sum_of(data)),
        rtol=1e-3,
        atol=1e-5,
    )


def sum_of(data):
    return sum(int(batch["counted"].sum()) for batch in data)


def naive_loss(model, data):
    """Mean loss of the answers' tokens, each predicted from what is before it."""
    losses = []
    for batch in data:
        logits = model(**shown(batch)).logits
        for row, mask in enumerate(batch["counted"].bool()):
            places = mask.nonzero().flatten()
            losses.append(
                F.cross_entropy(logits[row, places - 1], batch["input_ids"][row, places], reduction="none")
            )
    return torch.cat(losses).mean()


def test_losses_are_of_the_answers_alone():
    model, (batch, *_) = make("llama"), answered()
    expected = naive_loss(model, [batch])
    with torch.no_grad():
        loss, count = next_token_loss(model(**shown(batch)).logits, batch)
    assert (loss, count) == (pytest.approx(expected.item(), rel=1e-5), batch["counted"].sum())
    samples = [*split_samples(batch, model)]
    weighted = sum(model(**sample).loss * (sample["labels"] != -100).sum() for sample in samples) / count
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all("counted" not in sample for sample in samples)


def test_gradients_are_of_the_loss_of_the_answers():
    model, data = make("llama").double(), answered()
    site = find_sites(model, ["mlp"])[0]
    found = collect(model, [site], data, {"taylor_vectorize"})[site.name]["taylor_vectorize"]
    naive_loss(model, data).backward()
    up = model.get_submodule(site.producers[0].module).weight
    expected = (up.grad * up).sum(1).abs()
    torch.testing.assert_close(found[: len(expected)].double(), expected, rtol=1e-4, atol=1e-8)


def test_probes_and_the_analysis_compare_the_answers_alone():
    model, data = make("llama"), answered()
    mask = data[0]["counted"].bool()
    with torch.no_grad():
        expected = model(**shown(data[0])).logits[mask].log_softmax(-1)
        torch.testing.assert_close(log_probabilities(model, data[0]), expected)
        with walking(model, data) as walk:
            torch.testing.assert_close(Judge(walk, "kl").dense[0], expected)


def test_routers_are_made_of_the_answers_alone():
    model, data = make("llama"), answered()
    sites = find_sites(model, ["mlp"])
    for site, found in sample_mlps(model, sites, data):
        x, _ = heard(model, site.consumers[0].module, data)
        torch.testing.assert_close(found.activations.double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "taylor", "allocator": CFSP()},
        {"criterion": "obs", "allocator": ErrorCurves(), "schedule": "blockwise"},
        {"criterion": "wanda_sp", "schedule": "blockwise", "compensation": LeastSquares(target="residual")},
        {"criterion": "magnitude", "allocator": Uniform(protect="knowledge", knowledge=Knowledge(share=0.5))},
        {"criterion": "depth", "kinds": ["block"], "compensation": "bridge"},
    ],
    ids=lambda options: options["criterion"],
)
def test_no_model_is_given_the_mask(options):
    """Every part of a plan reads it; a model that got it would ignore it or fail."""
    model, data = make("llama"), answered()

    def refuse(module, args, kwargs):
        assert "counted" not in kwargs

    kinds = options.pop("kinds", ["mlp"])
    options = {"allocator": "uniform", "sparsity": 0.4} | options
    with ExitStack() as stack:
        for module in (model, model.base_model):
            stack.callback(module.register_forward_pre_hook(refuse, with_kwargs=True).remove)
        assert cfsp.plan(model, data, kinds=kinds, **options).edits


def test_a_mask_of_another_shape_or_without_a_token_is_told():
    model, (batch, *_) = make("llama"), answered()
    sites = find_sites(model, ["mlp"])
    with pytest.raises(ValueError, match=r"batch 0: counted is \[2, 5\] and input_ids is \[2, 12\]"):
        collect(model, sites, [{**batch, "counted": batch["counted"][:, :5]}], {"input_mean"})
    with pytest.raises(ValueError, match="batch 0 masks every token"):
        collect(model, sites, [{**batch, "counted": 1 - batch["attention_mask"]}], {"input_mean"})
