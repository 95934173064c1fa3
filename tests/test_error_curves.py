"""Error curves: widths that the whole model bears best, under a budget."""

import itertools
import sys

import numpy as np
import pytest
import torch
from families import ENCODER, LLAMA, batches, make
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import cfsp
from cfsp import collection, probes
from cfsp.allocators.error_curves import ErrorCurves, hull
from cfsp.cache import Cache
from cfsp.compensation.least_squares import LeastSquares
from cfsp.compensation.mean import MeanCompensation
from cfsp.costs import macs
from cfsp.criteria.flap import FLAP
from cfsp.criteria.obs import OBS
from cfsp.finding import find_sites
from cfsp.plans import Cut, PrunePlan
from cfsp.progress import Progress
from cfsp.schedules.base import parameters
from cfsp.schedules.one_shot import OneShot
from cfsp.sites import Site, unit_cost

COST = {"a": 3, "b": 5}
SITES = [Site(name, "mlp", 12, block=number) for number, name in enumerate(COST)]


def stats_of(**curves):
    return {
        name: {"error_curve": torch.tensor(points, dtype=torch.float64)} for name, points in curves.items()
    }


def curve(scale, power=2):
    return [(width, scale * (1 - width / 12) ** power) for width in range(1, 13)]


@pytest.mark.parametrize("budget", [20, 41, 55, 67, 80, 95])
def test_no_other_widths_within_the_budget_are_better(budget):
    curves = {"a": curve(1.0), "b": curve(2.0)}
    keep = ErrorCurves().allocate(SITES, {}, stats_of(**curves), COST, budget)
    errors = {name: dict(points) for name, points in curves.items()}

    def error(widths):
        return sum(errors[name][width] for name, width in widths.items())

    fitting = [
        widths
        for widths in (
            dict(zip(COST, pair, strict=True)) for pair in itertools.product(range(1, 13), repeat=2)
        )
        if sum(widths[name] * COST[name] for name in COST) <= budget
    ]
    spent = sum(keep[name] * COST[name] for name in COST)
    assert budget - spent < min(COST.values())
    # Within the step by which a budget that both prices divide badly must be missed.
    assert error(keep) <= min(map(error, fitting)) + 0.1


@pytest.mark.parametrize("gone", [1, 40, 50, 100, 101, 110, 150, 199, 240, 395])
def test_no_key_value_group_goes_where_neurons_do(gone):
    sites = [Site("heads", "attention", 4, block=0), Site("neurons", "mlp", 400, block=0)]
    cost = {"heads": 100, "neurons": 1}
    curves = stats_of(
        heads=[(width, 4.0 - width) for width in range(1, 5)],
        neurons=[(width, 0.0101 * (400 - width)) for width in range(1, 401)],
    )
    keep = ErrorCurves().allocate(sites, {}, curves, cost, 800 - gone)
    errors = {heads + 0.0101 * max(0, gone - 100 * heads) for heads in range(4) if gone - 100 * heads < 400}
    assert 4 - keep["heads"] + 0.0101 * (400 - keep["neurons"]) == pytest.approx(min(errors))


def test_a_site_that_matters_less_keeps_less():
    keep = ErrorCurves().allocate(SITES, {}, stats_of(a=curve(0.1), b=curve(5.0)), COST, 60)
    assert keep["a"] < keep["b"]


def test_widths_are_multiples_and_protected_blocks_whole():
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    keep = ErrorCurves(round_to=4).allocate(SITES, {}, curves, COST, 70)
    assert all(width % 4 == 0 for width in keep.values())
    assert ErrorCurves(protect=[0]).allocate(SITES, {}, curves, COST, 60)["a"] == 12


def test_a_budget_in_another_currency():
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    for name, price in (("a", 7.0), ("b", 1.0)):
        curves[name]["unit_cost"] = torch.tensor(price)
    keep = ErrorCurves(budget="macs").allocate(SITES, {}, curves, COST, 48)  # half of the parameters' cost
    spared = 7 * (12 - keep["a"]) + (12 - keep["b"])
    assert 48 <= spared < 55


def test_hull_is_convex_and_nowhere_above():
    widths = np.arange(1, 30)
    errors = np.random.default_rng(0).random(29) + (30 - widths) ** 2 / 100
    convex = hull(widths, errors)
    assert (convex <= errors + 1e-12).all()
    assert (np.diff(convex, 2) >= -1e-9).all()
    assert convex[0] == errors[0]
    assert convex[-1] == errors[-1]


def test_a_curve_goes_through_the_probes_and_follows_the_scores():
    points = {4: 3.0, 8: 1.0, 12: 0.0}
    even = dict(probes.curve(points, torch.ones(12), groups=1).tolist())
    assert [even[width] for width in (0, 4, 6, 8, 10, 12)] == pytest.approx([5, 3, 2, 1, 0.5, 0], abs=1e-4)
    rising = dict(probes.curve(points, torch.arange(12.0), groups=1).tolist())  # 0, 1, 2, 3 go before 8
    assert [rising[width] for width in (12, 11, 10, 9, 8)] == pytest.approx([0, 0, 1 / 6, 0.5, 1], abs=1e-4)
    shifted = probes.curve(points, torch.arange(12.0) - 30, groups=1)  # standardised scores may be negative
    torch.testing.assert_close(shifted, probes.curve(points, torch.arange(12.0), groups=1))
    paired = probes.curve(points, torch.arange(12.0), groups=2)
    assert paired[:, 0].tolist() == [*range(0, 13, 2)]
    assert dict(paired.tolist())[4] == 3.0
    assert probes.curve({1: 0.0}, torch.ones(1), groups=1).tolist() == [[1, 0]]


def test_probes_are_what_a_cut_model_loses():
    model = make("llama")
    samples = batches(count=4)
    options = {"criterion": "wanda_sp", "kinds": ["mlp", "attention"], "sparsity": 0.3}
    plan = cfsp.plan(model, samples, allocator=ErrorCurves(shares=[0.5], batches=2), **options)
    sites = find_sites(model, ["mlp", "attention"])
    curves = plan.notes["error_curves"]
    assert set(curves) == {site.name for site in sites}
    for site in sites:
        (width, error), whole = curves[site.name]
        assert whole == [site.units, 0.0]
        single = cfsp.plan(model, samples, allocator="uniform", **options | {"sparsity": 0.5})
        (cut,) = [cut for cut in single.edits if cut.site == site.name]
        assert len(cut.keep) == width
        with torch.no_grad():
            dense = [model(**batch).logits.log_softmax(-1) for batch in samples[:2]]
            with Progress(model, sites, [cut]).gates():
                pruned = [model(**batch).logits.log_softmax(-1) for batch in samples[:2]]
        loss = sum((d.exp() * (d - p)).sum() for d, p in zip(dense, pruned, strict=True)) / (2 * 2 * 12)
        assert error == pytest.approx(float(loss), rel=1e-3)


def seconds_by_size(work, device):
    (model,) = work.__defaults__
    return 1e-9 * sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("schedule", ["one_shot", "blockwise"])
@pytest.mark.parametrize("budget", ["parameters", "macs", "latency"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_whole_path(family, budget, schedule, monkeypatch):
    monkeypatch.setattr(probes, "seconds_of", seconds_by_size)  # models so small take no less time
    model = make(family)
    parts = {"criterion": "obs", "compensation": "least_squares", "kinds": ["mlp", "attention"]}
    parts |= {"allocator": ErrorCurves(budget=budget, shares=[0.7, 0.4]), "schedule": schedule}
    sites = find_sites(model, parts["kinds"])
    before = parameters(model, sites)["sites"]
    plan = cfsp.plan(model, batches(), sparsity=0.4, **parts)
    cfsp.apply(plan, model)
    left = parameters(model, find_sites(model, parts["kinds"]))["sites"]
    if budget == "macs":
        asked = 0.4 * (macs(make(family), 12) - macs(emptied(family, parts["kinds"]), 12))
        gone = macs(make(family), 12) - macs(model, 12)
        assert 0.9 * asked < gone < 1.5 * asked  # a head is a fifth of all that can go
    if budget == "parameters":
        cheapest = min(unit_cost(make(family), site) for site in sites)
        assert 0.6 * before - cheapest < left <= 0.6 * before + 1
    assert left < before


def emptied(family, kinds):
    """The model with one unit, or one for each group, left in every site: nearly all that can go is gone."""
    model = make(family)
    sites = find_sites(model, kinds)
    first = [tuple(range(0, site.units, site.units // site.groups)) for site in sites]
    cuts = [Cut(site.name, site.units, keep) for site, keep in zip(sites, first, strict=True)]
    cfsp.apply(PrunePlan(tuple(cuts)), model)
    return model


def test_a_site_with_nothing_to_try_stays_whole():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 1})).eval()
    parts = {"criterion": "obs", "compensation": "least_squares", "kinds": ["mlp", "attention"]}
    for budget in ("parameters", "macs"):
        plan = cfsp.plan(model, batches(), sparsity=0.2, allocator=ErrorCurves(budget=budget), **parts)
        widths = {cut.site: len(cut.keep) for cut in plan.edits}
        assert widths["model.layers.0.attention"] == widths["model.layers.1.attention"] == 1
        assert widths["model.layers.0.mlp"] + widths["model.layers.1.mlp"] < 80


def test_answers_for_whole_texts_are_compared_too():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**ENCODER)).eval()
    plain = [{"input_ids": batch["input_ids"]} for batch in batches()]
    for samples in (batches(padded=True), plain):
        assert probes.log_probabilities(model, samples[0]).shape == (2, 2)
        plan = cfsp.plan(model, samples, criterion="magnitude", allocator="error_curves", sparsity=0.3)
        assert all(loss >= 0 for curve in plan.notes["error_curves"].values() for _, loss in curve)
    with pytest.raises(ValueError, match="BertForQuestionAnswering gives no logits"):
        probes.log_probabilities(BertForQuestionAnswering(BertConfig(**ENCODER)), plain[0])


def test_no_statistics_are_kept_for_all_sites_at_once(monkeypatch):
    """Second moments are large: blockwise, an allocation by probes needs those of one block at a time."""
    sites = []
    observe = collection.observe
    monkeypatch.setattr(
        collection, "observe", lambda model, *args: sites.append(len(args[0])) or observe(model, *args)
    )
    parts = {"criterion": "obs", "compensation": "least_squares", "schedule": "blockwise"}
    cfsp.plan(make("llama"), batches(), allocator="error_curves", **parts)
    assert set(sites) == {1}


def test_a_sweep_probes_once(monkeypatch, tmp_path):
    tried = []
    original = probes.probe
    monkeypatch.setattr(probes, "probe", lambda *args: tried.append(args) or original(*args))
    model, cache = make("llama"), Cache(tmp_path)
    sites = find_sites(model)

    def plan(sparsity, criterion=None, compensation=None, **options):
        parts = criterion or OBS(), ErrorCurves(**options), compensation or LeastSquares()
        return OneShot(sparsity=sparsity).plan(model, sites, batches(), *parts, cache=cache)

    plan(0.2)
    again = plan(0.4)
    assert len(tried) == 1
    fresh = OneShot(sparsity=0.4).plan(model, sites, batches(), OBS(), ErrorCurves(), LeastSquares())
    assert [cut.keep for cut in again.edits] == [cut.keep for cut in fresh.edits]
    assert again.notes["error_curves"] == fresh.notes["error_curves"]
    before = len(tried)
    for _ in range(2):  # parts that are no dataclasses are known again too
        plan(0.2, criterion=FLAP(), compensation=MeanCompensation())
    assert len(tried) == before + 1
    for options in ({"criterion": OBS(ridge=0.1)}, {"shares": [0.5]}, {"budget": "macs"}):
        before = len(tried)
        plan(0.2, **options)
        assert len(tried) == before + 1
    monkeypatch.setattr(probes, "seconds_of", seconds_by_size)
    for _ in range(2):
        before = len(tried)
        plan(0.2, budget="latency")
        assert len(tried) == before + 1


def test_dropout_is_off_and_the_mode_is_kept():
    model, training = make("gpt2"), make("gpt2").train()
    parts = {"criterion": "obs", "compensation": "least_squares", "schedule": "blockwise"}
    parts |= {"target": "residual", "allocator": "error_curves"}
    expected, plan = (cfsp.plan(one, batches(), **parts) for one in (model, training))
    assert training.training
    for cut, same in zip(plan.edits, expected.edits, strict=True):
        assert cut.keep == same.keep
        assert torch.equal(cut.consumer, same.consumer)


def test_what_cannot_be_probed_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match="expected only mlp and attention, and schedule=one_shot or blockwise"
    ):
        cfsp.plan(make("llama"), batches(), schedule="iterative", allocator="error_curves", sparsity=0.5)
    curves = stats_of(a=curve(1.0), b=curve(1.0))
    curves["a"]["unit_cost"], curves["b"]["unit_cost"] = torch.tensor(1e-9), torch.tensor(1.0)
    with pytest.raises(
        ValueError, match="budget=macs is a share of what the sites take; expected sparsity_of=s"
    ):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(budget="macs"), sparsity_of="model")
    monkeypatch.setattr("cfsp.schedules.base.probe_once", None)  # refused before anything is probed
    with pytest.raises(ValueError, match="would leave a width of zero units"):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(round_to=16), sparsity=0.99)
    monkeypatch.undo()
    monkeypatch.setattr(probes, "seconds_of", lambda work, device: 1.0)
    with pytest.raises(ValueError, match="takes no less time on a calibration batch; expected longer"):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(budget="latency"))
    with pytest.raises(ValueError, match="cannot spare the last 3.25 of it; expected a lower sparsity"):
        ErrorCurves(budget="macs", protect=[1]).allocate(SITES, {}, curves, COST, 70)


@pytest.mark.parametrize("options", [{"shares": []}, {"shares": [1.0]}, {"batches": 0}, {"budget": "time"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        ErrorCurves(**options)


def test_hidden_states_on_disk_give_the_same_plan():
    model = make("llama")
    parts = {
        "criterion": "obs",
        "compensation": "least_squares",
        "target": "residual",
        "schedule": "blockwise",
    }
    parts |= {"allocator": "uniform", "kinds": ["mlp", "attention"]}
    one, other = (cfsp.plan(model, batches(), hidden_states=place, **parts) for place in ("memory", "disk"))
    for cut, same in zip(one.edits, other.edits, strict=True):
        assert cut.keep == same.keep
        assert torch.equal(cut.consumer, same.consumer)


def test_modules_are_left_as_they_were():
    model = make("llama")
    model.model.layers[0].forward = theirs = model.model.layers[0].forward  # as accelerate's hooks do
    cfsp.plan(model, batches(), criterion="obs", allocator="error_curves", schedule="blockwise")
    assert model.model.layers[0].forward is theirs
    for module in model.modules():
        assert ("forward" in vars(module)) == (module is model.model.layers[0])
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert sys.getrefcount(model) < 10
