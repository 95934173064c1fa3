"""Targets: what refitted consumers should give, so that the model is led back to the dense one."""

import pytest
import torch
from families import batches, make

import cfsp
from cfsp.api import deciders
from cfsp.compensation.least_squares import LeastSquares
from cfsp.model.find_sites import find_sites
from cfsp.passes.walk import walking
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.targets import target_moments
from cfsp.storage.cache import Cache

SAMPLES = {"count": 8, "size": 2, "tokens": 24}


@pytest.mark.parametrize("target", ["own", "dense", "residual"])
def test_each_fit_brings_the_consumer_nearer_to_its_target(target):
    """On the calibration batches the refitted model ends nearer to the dense one than the cut one does."""
    dense = make("llama")
    errors = {}
    for name in ("none", LeastSquares(target=target, ridge=1e-6)):
        model = make("llama")
        options = {"criterion": "wanda_sp", "allocator": "uniform", "schedule": "blockwise", "sparsity": 0.5}
        cfsp.apply(cfsp.plan(model, batches(**SAMPLES), compensation=name, **options), model)
        with torch.no_grad():
            gaps = [
                (model.model(**batch).last_hidden_state - dense.model(**batch).last_hidden_state)
                .square()
                .mean()
                for batch in batches(**SAMPLES)
            ]
        errors[str(name)] = float(sum(gaps))
    plain, refitted = errors.values()
    assert refitted < plain


def test_a_residual_target_undoes_what_came_before():
    """A block that may give anything leads the stream back to the dense model's, whatever was lost before."""
    model = make("llama")
    plan = cfsp.plan(
        model,
        batches(**SAMPLES),
        criterion="wanda_sp",
        allocator="uniform",
        schedule="blockwise",
        compensation=LeastSquares(target="residual", ridge=1e-9),
        sparsity=0.3,
    )
    own = cfsp.plan(
        model,
        batches(**SAMPLES),
        criterion="wanda_sp",
        allocator="uniform",
        schedule="blockwise",
        compensation=LeastSquares(ridge=1e-9),
        sparsity=0.3,
    )
    # Nothing comes before the first MLP: there the targets are one.
    torch.testing.assert_close(plan.edits[0].consumer, own.edits[0].consumer, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plan.edits[1].consumer, own.edits[1].consumer, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("compensation", ["least_squares", "scale"])
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "bert"])
def test_a_residual_target_is_refused_before_anything_is_measured(family, compensation):
    """There is none where blocks norm or scale what their MLPs give."""
    options = {"criterion": "wanda_sp", "schedule": "blockwise", "compensation": compensation}
    decider, method = deciders(
        options | {"allocator": "error_curves"}, {"target": "residual"}, {"sparsity": 0.5}, seed=0
    )
    model = make(family)
    with pytest.raises(ValueError, match=r"MLPs give .*; expected compensation\.target=own or dense"):
        decider.prepare(Subject(model, find_sites(model), Cache.at("off")), method)


def test_rounding_of_a_large_stream_is_no_reason_to_refuse():
    model = make("llama").bfloat16()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(100)
    options = {"criterion": "magnitude", "allocator": "uniform", "schedule": "blockwise"}
    cfsp.plan(model, batches(**SAMPLES), compensation="least_squares", target="residual", **options)


def test_a_target_takes_a_schedule_that_can_give_it():
    with pytest.raises(ValueError, match="schedule OneShot gives only own; expected schedule=blockwise"):
        cfsp.plan(make("llama"), batches(), compensation="least_squares", target="dense")


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("target", ["dense", "residual"])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_targets_are_those_of_a_naive_computation(family, kind, target):
    """Of the second block, once the first is cut: from whole passes of the two models, side by side."""
    dense, model = make(family), make(family)
    sites = find_sites(model, ["mlp", "attention"])
    first = [site for site in sites if site.block == 0]
    (site,) = [site for site in sites if site.block == 1 and site.kind == kind]
    samples = batches(count=9, size=1, padded=False) + batches(count=1, padded=True)
    cuts = [Cut(one.name, one.units, tuple(range(0, one.units, 2))) for one in first]
    gates = PartlyCut(model, first, cuts).gates()
    with walking(dense, samples) as ideal, walking(model, samples) as pruned:
        ideal.advance()
        with gates:
            pruned.advance()
        found = target_moments(ideal, pruned, site, target, PartlyCut(model, [site]).gates())["target_moment"]

    def seen(one, batch):
        inputs, outputs, states = [], [], []
        module = one.get_submodule(site.consumers[0].module)
        block = one.get_submodule(site.blocks[0])

        def of_consumer(_, args, output):
            inputs.append(args[0])
            outputs.append(output)

        def of_block(_, args, output):
            states.extend([args[0], output[0] if isinstance(output, tuple) else output])

        handles = [module.register_forward_hook(of_consumer), block.register_forward_hook(of_block)]
        with torch.no_grad():
            one(**batch)
        for handle in handles:
            handle.remove()
        return inputs[0], outputs[0], *states

    total, count = 0, 0
    for batch in samples:
        _, output, before, after = seen(dense, batch)
        with gates:
            x, own, entered, left = seen(model, batch)
        wanted = output
        if target == "residual":
            # Whatever the stream has become, the consumer's output makes up for the difference.
            wanted = output + before - entered if kind == "attention" else own + after - left
        bias = model.get_submodule(site.consumers[0].module).bias
        wanted = wanted - (0 if bias is None else bias)
        shown = batch["attention_mask"].bool()
        ones = torch.ones(int(shown.sum()), 1)
        total = total + torch.cat([x[shown].flatten(1), ones], 1).double().T @ wanted[shown].double()
        count += len(ones)
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-6)
