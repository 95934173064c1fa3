"""Least squares: refitted consumers give what they should as well as they can, and nothing else changes."""

import copy

import pytest
import torch
from families import FAMILIES, batches, kinds_of, make

import cfsp
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.uniform import Uniform
from cfsp.compensation.bridge import Bridge
from cfsp.compensation.least_squares import LeastSquares
from cfsp.compensation.scale import Scale
from cfsp.criteria.obs import OBS
from cfsp.model.find_sites import find_sites
from cfsp.model.parameter_count import count_parameters
from cfsp.model.views import UnitView
from cfsp.plans.gates import Gates
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.schedules.partly_cut import PartlyCut

SAMPLES = {"count": 8, "size": 2, "tokens": 24}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_gated_and_cut_models_agree(family):
    model = make(family)
    kinds = kinds_of(model)
    sites = find_sites(model, kinds)
    plan = cfsp.plan(
        model,
        batches(**SAMPLES),
        kinds=kinds,
        criterion="obs",
        allocator="uniform",
        compensation=LeastSquares(constant=True),
        sparsity=0.4,
    )
    assert all(cut.consumer is not None and cut.bias is not None for cut in plan.edits)
    inputs = batches(count=1, padded=True)[0]
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), PartlyCut(model, sites, plan.edits).gates():
        gated = model(**inputs).logits
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    cfsp.apply(plan, model)
    with torch.no_grad():
        cut = model(**inputs).logits
    shown = inputs["attention_mask"].bool()
    torch.testing.assert_close(cut[shown], gated[shown], rtol=1e-4, atol=1e-4)


def test_sites_that_share_a_consumer_are_refused():
    with pytest.raises(ValueError, match="fits each consumer to one site"):
        cfsp.plan(
            make("llama"),
            batches(),
            kinds=["attention", "query_heads"],
            allocator="uniform",
            compensation="least_squares",
        )


@pytest.mark.parametrize("ridge", [0, -1.0, float("nan"), True, "some"])
def test_impossible_ridges_are_refused(ridge):
    for part in (LeastSquares, OBS, Scale, Bridge):
        with pytest.raises(ValueError, match="ridge=.*expected a (finite )?number"):
            part(ridge=ridge)


def test_a_ridge_that_leaves_no_weights_is_named():
    compensation = LeastSquares(ridge=1e300, towards="zero")
    with pytest.raises(ValueError, match=r"layers.0.mlp: .* ridge=1e\+300 shrinks all weights to zero"):
        cfsp.plan(make("llama"), batches(), compensation=compensation, allocator="uniform")


def test_a_ridge_that_is_too_small_is_named():
    few = batches(count=1, size=1, tokens=12)
    parts = {"compensation": "least_squares", "allocator": "uniform"}
    for criterion, ridge in ((OBS(ridge=1e-30), {}), ("wanda_sp", {"ridge": 1e-30})):
        whose = "compensation" if ridge else "criterion"
        with pytest.raises(ValueError, match=rf"layers.0.mlp: {whose} ridge=1e-30 .* expected a larger one"):
            cfsp.plan(make("llama"), few, criterion=criterion, **parts, **ridge)


def test_beside_a_massive_channel_the_defaults_still_refit_the_others():
    """They keep most of what a refit gains; a ridge relative to the mean, and towards zero, loses it all."""
    torch.manual_seed(0)
    model = make("llama")
    site, view = find_sites(model)[0], UnitView(model, find_sites(model)[0])
    x = torch.randn(4000, 8).double() @ torch.randn(8, site.units).double()
    x = x + 0.3 * torch.randn(x.shape).double()
    x[::500, 5] = 3e4  # the first token of a window
    weight, keep = view.consumers()[0].flatten(0, 1).double(), [*range(site.units // 2)]
    given = torch.cat([x, torch.ones(len(x), 1)], 1)
    stat = {"input_second_moment": given.T @ given / len(x)}
    small = (x[:, 5].abs() < 1e4).nonzero().flatten()

    def error(consumer):
        return float((x[:, keep] @ consumer.double() - x @ weight)[small].square().sum(1).mean())

    def fitted(**options):
        return error(LeastSquares(**options).compensate(view, stat, keep)["consumer"].flatten(0, -2))

    without, best = error(weight[keep]), fitted(ridge=1e-9)
    assert fitted() - best < 0.2 * (without - best)
    assert fitted(scale="mean") - best > 0.5 * (without - best)
    assert fitted(scale="mean", towards="zero", ridge=1e-3) - best > 0.2 * (without - best)


def test_a_site_that_gives_nothing_is_cut_like_any_other():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    parts = {"criterion": "obs", "compensation": "least_squares", "allocator": "uniform"}
    cfsp.apply(cfsp.plan(model, batches(**SAMPLES), **parts), model)
    assert model(**batches(count=1)[0]).logits.isfinite().all()


def test_an_automatic_ridge_is_the_best_on_held_out_samples(monkeypatch):
    model = make("llama")
    chosen = []
    original = LeastSquares.best_ridge
    monkeypatch.setattr(
        LeastSquares, "best_ridge", lambda *args: chosen.append(original(*args)) or chosen[-1]
    )
    few = batches(count=8, size=1, tokens=6)  # 48 tokens for 40 neurons: it must be regularised
    many = batches(count=64, size=4, tokens=32)
    for samples in (few, many):
        cfsp.plan(
            model, samples, allocator="uniform", compensation="least_squares", ridge="auto", sparsity=0.1
        )
    assert sum(chosen[:2]) > sum(chosen[2:])


@pytest.mark.parametrize(
    ("data", "options", "fitted"),
    [
        (batches(), {"allocator": "uniform"}, "6"),
        (batches(count=2, size=6), {"allocator": ErrorCurves(batches=1)}, "6 of 12 to fit to"),
        (
            batches(count=4, size=5),
            {"allocator": ErrorCurves(batches=1, rounds=1), "schedule": "blockwise"},
            "5 of 20 to fit to",
        ),
    ],
)
def test_an_automatic_ridge_on_too_few_samples_is_refused_before_anything_is_measured(data, options, fitted):
    """Error curves and a joint search fit to some of the batches."""
    model = make("llama")
    model.forward = None
    parts = {"compensation": LeastSquares(ridge="auto"), "criterion": "wanda_sp", **options}
    with pytest.raises(ValueError, match=f"every 8th calibration sample, and there are {fitted}; expected 8"):
        cfsp.plan(model, data, sparsity=0.5, **parts)


@pytest.mark.parametrize(
    ("data", "allocator"),
    [(batches(count=2, size=8), ErrorCurves(batches=1, shares=[0.5])), (batches(count=1, size=8), "uniform")],
)
def test_eight_samples_are_enough_for_an_automatic_ridge(data, allocator):
    cfsp.plan(make("llama"), data, allocator=allocator, compensation=LeastSquares(ridge="auto"), sparsity=0.5)


@pytest.mark.parametrize("criterion", ["obs", "wanda_sp"])
def test_fewer_tokens_than_channels_work_and_are_said(criterion, capsys):
    model = make("llama")
    parts = {"criterion": criterion, "compensation": "least_squares", "allocator": "uniform"}
    for _ in range(2):  # once for each site and plan
        plan = cfsp.plan(model, batches(count=1, size=1, tokens=12), **parts)
        assert capsys.readouterr().err.count("12 calibration tokens for 40 channels") == 2
    cfsp.apply(plan, model)
    assert model(**batches(count=1)[0]).logits.isfinite().all()


def test_dead_channels_go_first():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[[3, 17]] = 0
    plan = cfsp.plan(
        model,
        batches(**SAMPLES),
        criterion="obs",
        compensation="least_squares",
        allocator="uniform",
        sparsity=0.05,
    )
    assert set(plan.edits[0].removed) == {3, 17}


def test_constant_channels_cost_nothing_beside_a_constant():
    torch.manual_seed(0)
    model = make("llama_mha_biased")
    with torch.no_grad():  # gate and up of neuron 5 are their biases alone
        for name in ("gate_proj", "up_proj"):
            getattr(model.model.layers[0].mlp, name).weight[5] = 0
    parts = {"compensation": LeastSquares(constant=True), "allocator": "uniform", "sparsity": 0.025}
    plan = cfsp.plan(model, batches(**SAMPLES), criterion=OBS(constant=True), **parts)
    assert plan.edits[0].removed == (5,)


def test_nan_is_named_with_its_block():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"input_second_moment is NaN or infinite at model.layers.1.mlp"):
        cfsp.plan(model, batches(), criterion="obs", compensation="least_squares", allocator="uniform")


@pytest.mark.parametrize("target", ["own", "dense"])
def test_a_weight_that_is_not_finite_is_never_fitted_to(target):
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    parts = {"allocator": "uniform", "schedule": "blockwise", "compensation": LeastSquares(target=target)}
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.* NaN or infinite"):
        cfsp.plan(model, batches(), criterion="chance", **parts)


@pytest.mark.parametrize("constant", [False, True])
def test_an_mlp_may_go_as_a_whole(constant):
    model = make("llama")
    bias = torch.ones(32) if constant else None
    plan = PrunePlan((Cut("model.layers.0.mlp", 40, (), consumer=torch.zeros(0, 32), bias=bias),))
    inputs = batches(count=1)[0]
    with torch.no_grad(), PartlyCut(model, find_sites(model), plan.edits).gates():
        gated = model(**inputs).logits
    cfsp.apply(plan, model)
    torch.testing.assert_close(model(**inputs).logits, gated, rtol=1e-4, atol=1e-4)
    parts = {"compensation": LeastSquares(constant=constant), "allocator": Uniform(allow_empty=True)}
    empty = cfsp.plan(make("llama"), batches(), criterion="wanda_sp", sparsity=0.99, **parts)
    assert [cut.keep for cut in empty.edits] == [(), ()]
    cfsp.apply(empty, make("llama"))


def test_query_heads_are_exchanged_within_their_groups():
    parts = {"kinds": ["query_heads"], "criterion": OBS(swaps=30, ridge=1e-6), "allocator": "uniform"}
    for seed in range(4):
        model = make("llama", seed=seed)
        plan = cfsp.plan(model, batches(seed=seed), sparsity=0.5, compensation="least_squares", **parts)
        cfsp.apply(plan, model)
        assert model.config.num_attention_heads >= 4


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", ["llama", "opt", "phi3", "gpt2"])
def test_steps_between_gates_are_steps_between_surgeries(family):
    model, twice = make(family), make(family)
    kinds = kinds_of(model)
    parts = {"criterion": "obs", "compensation": "least_squares", "allocator": "uniform", "kinds": kinds}
    data = batches(**SAMPLES)
    cfsp.apply(cfsp.plan(model, data, schedule="iterative", steps=2, sparsity=0.5, **parts), model)
    cfsp.apply(cfsp.plan(twice, data, sparsity=0.25, **parts), twice)
    sites = find_sites(twice, kinds)
    whole = find_sites(make(family), kinds)
    all_of_it = count_parameters(make(family), whole)["sites"]
    due = round(0.5 * all_of_it) - (all_of_it - count_parameters(twice, sites)["sites"])
    cfsp.apply(cfsp.plan(twice, data, sparsity=due / count_parameters(twice, sites)["sites"], **parts), twice)
    for one, other in zip(model.parameters(), twice.parameters(), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_gates_put_weights_back_after_an_error():
    model = make("llama")
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.clone()
    path = "model.layers.0.mlp.down_proj"
    seen = []

    def fail():
        with Gates(model, [], {}, weights={path: torch.zeros_like(weight)}):
            seen.append(bool(model.get_submodule(path).weight.any()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert seen == [False]
    assert torch.equal(model.get_submodule(path).weight, before)


def test_a_plan_with_weights_survives_the_disk(tmp_path):
    model, other = make("llama"), make("llama")
    plan = cfsp.plan(model, batches(), compensation=LeastSquares(constant=True), allocator="uniform")
    plan.save(tmp_path)
    cfsp.apply(plan, model)
    cfsp.apply(cfsp.PrunePlan.load(tmp_path), other)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
