"""Probes: what the whole model loses with the width of one site."""

import math

import pytest
import torch
from families import ENCODER, batches, make
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

import cfsp
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.compensation.least_squares import LeastSquares
from cfsp.compensation.mean import MeanCompensation
from cfsp.criteria.flap import FLAP
from cfsp.criteria.obs import OBS
from cfsp.model.find_sites import find_sites
from cfsp.model.parameter_count import count_parameters
from cfsp.model.pass_cost import macs
from cfsp.model.views import unit_cost
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules import latency_table, prices, probes
from cfsp.schedules.dense_answers import log_probabilities
from cfsp.schedules.method import Method
from cfsp.schedules.one_shot import OneShot
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics import collect as collection
from cfsp.storage.cache import Cache


def test_a_curve_goes_through_the_probes_and_follows_the_scores():
    points = {4: 3.0, 8: 1.0, 12: 0.0}
    even = dict(probes.curve(points, torch.ones(12), groups=1).tolist())
    assert [even[width] for width in (4, 6, 8, 10, 12)] == pytest.approx([3, 2, 1, 0.5, 0], abs=1e-4)
    assert even[0] == pytest.approx(3 * 1.5 ** math.log2(3), rel=1e-4)  # twice as many cost thrice
    slowing = dict(probes.curve({4: 3.0, 8: 2.0, 12: 0.0}, torch.ones(12), groups=1).tolist())
    assert slowing[0] == pytest.approx(4, rel=1e-4)  # not below the line
    rising = dict(probes.curve(points, torch.arange(12.0), groups=1).tolist())  # 0, 1, 2, 3 go before 8
    assert [rising[width] for width in (12, 11, 10, 9, 8)] == pytest.approx([0, 0, 1 / 6, 0.5, 1], abs=1e-4)
    shifted = probes.curve(points, torch.arange(12.0) - 30, groups=1)  # standardised scores may be negative
    torch.testing.assert_close(shifted, probes.curve(points, torch.arange(12.0), groups=1))
    paired = probes.curve(points, torch.arange(12.0), groups=2)
    assert paired[:, 0].tolist() == [*range(0, 13, 2)]
    assert dict(paired.tolist())[4] == 3.0
    assert probes.curve({1: 0.0}, torch.ones(1), groups=1).tolist() == [[1, 0]]


def test_one_probe_scales_the_scores_everywhere():
    score = torch.arange(12.0)  # 0, then 1, then 3, 6, 10 ... in sum
    found = dict(probes.curve({9: 6.0, 12: 0.0}, score, groups=1).tolist())
    for kept, expected in {12: 0.0, 10: 2.0, 9: 6.0, 8: 12.0, 6: 30.0, 0: 132.0}.items():
        assert found[kept] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_widths_that_nobody_measured_are_told(capsys):
    model, samples = make("llama"), batches(count=4)
    options = {"criterion": "wanda_sp", "kinds": ["mlp"]}
    for sparsity, told in ((0.1, False), (0.7, True)):
        cfsp.plan(model, samples, allocator=ErrorCurves(shares=[0.9, 0.8]), sparsity=sparsity, **options)
        assert ("expected smaller allocator.shares" in capsys.readouterr().err) is told


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
            with PartlyCut(model, sites, [cut]).gates():
                pruned = [model(**batch).logits.log_softmax(-1) for batch in samples[:2]]
        loss = sum((d.exp() * (d - p)).sum() for d, p in zip(dense, pruned, strict=True)) / (2 * 2 * 12)
        assert error == pytest.approx(float(loss), rel=1e-3)


@pytest.mark.parametrize(("asked", "measured"), [(1, 1), (2, 2), (4, 2)])
def test_a_compensation_is_fitted_on_other_batches_than_are_measured(asked, measured):
    """A fit hides its error on its own text; at least half of the batches are left for it."""
    model, samples = make("llama"), batches(count=4)
    options = {"criterion": "magnitude", "compensation": LeastSquares(ridge=1e-4), "kinds": ["mlp"]}
    plan = cfsp.plan(model, samples, allocator=ErrorCurves(shares=[0.5], batches=asked), **options)
    single = cfsp.plan(model, samples[measured:], allocator="uniform", sparsity=0.5, **options)
    assert single.edits
    for cut in single.edits:
        with torch.no_grad():
            dense = [model(**batch).logits.log_softmax(-1) for batch in samples[:measured]]
            with PartlyCut(model, find_sites(model, ["mlp"]), [cut]).gates():
                pruned = [model(**batch).logits.log_softmax(-1) for batch in samples[:measured]]
        loss = sum((d.exp() * (d - p)).sum() for d, p in zip(dense, pruned, strict=True)) / (measured * 24)
        width, error = plan.notes["error_curves"][cut.site][0]
        assert width == len(cut.keep)
        assert error == pytest.approx(float(loss), rel=1e-3)


def test_with_one_batch_it_is_said_that_the_fit_is_measured_on_its_own_text(capsys):
    options = {"criterion": "magnitude", "allocator": ErrorCurves(shares=[0.5]), "kinds": ["mlp"]}
    cfsp.plan(make("llama"), batches(count=1), **options)
    assert not capsys.readouterr().err
    cfsp.plan(make("llama"), batches(count=1), compensation="least_squares", **options)
    assert "measured on the batch that the weights are fitted on" in capsys.readouterr().err


def test_answers_for_whole_texts_are_compared_too():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**ENCODER)).eval()
    plain = [{"input_ids": batch["input_ids"]} for batch in batches()]
    for samples in (batches(padded=True), plain):
        assert log_probabilities(model, samples[0]).shape == (2, 2)
        plan = cfsp.plan(model, samples, criterion="magnitude", allocator="error_curves", sparsity=0.3)
        assert all(loss >= 0 for curve in plan.notes["error_curves"].values() for _, loss in curve)
    with pytest.raises(ValueError, match="BertForQuestionAnswering gives no logits"):
        log_probabilities(BertForQuestionAnswering(BertConfig(**ENCODER)), plain[0])


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


seconds_by_size = property(lambda timed: 1e-9 * sum(weight.numel() for weight in timed.model.parameters()))


def emptied(family, kinds):
    """The model with one unit, or one for each group, left in every site: nearly all that can go is gone."""
    model = make(family)
    sites = find_sites(model, kinds)
    first = [tuple(range(0, site.units, site.units // site.groups)) for site in sites]
    cuts = [Cut(site.name, site.units, keep) for site, keep in zip(sites, first, strict=True)]
    cfsp.apply(PrunePlan(tuple(cuts)), model)
    return model


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("schedule", ["one_shot", "blockwise"])
@pytest.mark.parametrize("budget", ["parameters", "macs", "latency"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_whole_path(family, budget, schedule, monkeypatch):
    monkeypatch.setattr(latency_table.Pass, "seconds", seconds_by_size)  # models so small take no less time
    model = make(family)
    parts = {"criterion": "obs", "compensation": "least_squares", "kinds": ["mlp", "attention"]}
    parts |= {"allocator": ErrorCurves(budget=budget, shares=[0.7, 0.4]), "schedule": schedule}
    sites = find_sites(model, parts["kinds"])
    before = count_parameters(model, sites)["sites"]
    plan = cfsp.plan(model, batches(), sparsity=0.4, **parts)
    cfsp.apply(plan, model)
    left = count_parameters(model, find_sites(model, parts["kinds"]))["sites"]
    if budget == "macs":
        asked = 0.4 * (macs(make(family), 12) - macs(emptied(family, parts["kinds"]), 12))
        gone = macs(make(family), 12) - macs(model, 12)
        assert 0.9 * asked < gone < 1.5 * asked  # a head is a fifth of all that can go
    if budget == "parameters":
        cheapest = min(unit_cost(make(family), site) for site in sites)
        assert 0.6 * before - cheapest < left <= 0.6 * before + 1
    assert left < before


@pytest.mark.slow
def test_a_sweep_probes_once(monkeypatch, tmp_path):
    tried = []
    original = probes.probe
    monkeypatch.setattr(probes, "probe", lambda *args: tried.append(args) or original(*args))
    model, cache = make("llama"), Cache(tmp_path)
    sites = find_sites(model)

    def plan(sparsity, criterion=None, compensation=None, **options):
        method = Method(criterion or OBS(), ErrorCurves(**options), compensation or LeastSquares())
        return OneShot(sparsity=sparsity).plan(Subject(model, sites, cache), batches(), method).plan

    plan(0.2)
    again = plan(0.4)
    assert len(tried) == 1
    method = Method(OBS(), ErrorCurves(), LeastSquares())
    fresh = OneShot(sparsity=0.4).plan(Subject(model, sites), batches(), method).plan
    assert [cut.keep for cut in again.edits] == [cut.keep for cut in fresh.edits]
    assert again.notes["error_curves"] == fresh.notes["error_curves"]
    before = len(tried)
    for _ in range(2):  # parts that are no dataclasses are known again too
        plan(0.2, criterion=FLAP(), compensation=MeanCompensation())
    assert len(tried) == before + 1
    for options in ({"criterion": OBS(ridge=0.1)}, {"shares": [0.5]}):
        before = len(tried)
        plan(0.2, **options)
        assert len(tried) == before + 1
    monkeypatch.setattr(latency_table.Pass, "seconds", seconds_by_size)
    for budget in ("macs", "latency"):  # what a unit costs changes no error
        before = len(tried)
        plan(0.2, budget=budget)
        assert len(tried) == before


def test_macs_of_a_unit_are_the_mean_over_the_samples():
    short, long = ({"input_ids": torch.zeros(1, tokens, dtype=torch.long)} for tokens in (4, 12))
    model = make("llama")
    sites = find_sites(model, ["attention"])
    one, other, both = (
        prices.macs_of_unit(model, sites, some, False) for some in ([short], [long], [short, long])
    )
    assert one < other
    assert both == pytest.approx((one + other) / 2)


def test_dropout_is_off_and_the_mode_is_kept():
    model, training = make("gpt2"), make("gpt2").train()
    parts = {"criterion": "obs", "compensation": "least_squares", "schedule": "blockwise"}
    parts |= {"target": "residual", "allocator": "error_curves"}
    expected, plan = (cfsp.plan(one, batches(), **parts) for one in (model, training))
    assert training.training
    for cut, same in zip(plan.edits, expected.edits, strict=True):
        assert cut.keep == same.keep
        assert torch.equal(cut.consumer, same.consumer)
