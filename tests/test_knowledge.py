"""The knowledge analysis: deviations by brute force, what is protected, the cache, the plan's notes."""

import math
import weakref

import pytest
import torch
from families import batches, kinds_of, make
from torch.nn import functional as F

import cfsp
from cfsp.allocators.cfsp import CFSP
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.global_rank import GlobalRank
from cfsp.allocators.protection import Protected
from cfsp.allocators.uniform import Uniform, UniformReleased
from cfsp.model.sites import Site
from cfsp.model.views import UnitView
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.records.record import Record
from cfsp.statistics import knowledge_pass
from cfsp.statistics.knowledge import Knowledge
from cfsp.statistics.knowledge_pass import knowledge_of, knowledge_once
from cfsp.storage.cache import Cache


def loss_of(model, data):
    total = count = 0
    for batch in data:
        with torch.no_grad():
            logits = model(**batch).logits
        for row, mask in enumerate(batch["attention_mask"].bool()):
            ids, given = batch["input_ids"][row][mask], logits[row][mask]
            total += float(F.cross_entropy(given[:-1], ids[1:], reduction="sum"))
            count += len(ids) - 1
    return total / count


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_deviations_are_those_of_cut_models(family):
    """Masking is cutting: the deviation is the difference of losses of a model that lost these units."""
    model, data = make(family).double(), batches(count=2, padded=True)
    sites, analysis = cfsp.find_sites(model, kinds_of(model)), Knowledge(ratios=(0.25, 0.5))
    found = knowledge_of(model, sites, data, analysis)
    dense = loss_of(model, data)
    for site in sites:
        norm = UnitView(model, site).totals(torch.square)
        for ratio, deviation in zip((0.25, 0.5), found[site.name], strict=True):
            cut = make(family).double()
            keep = best_units(norm, site.units - math.floor(ratio * site.units))
            cfsp.apply(PrunePlan((Cut(site.name, site.units, keep),)), cut)
            assert deviation == pytest.approx(loss_of(cut, data) - dense, abs=1e-5)


@pytest.mark.parametrize("measure", ["loss", "kl"])
def test_outputs_of_all_batches_are_never_held_at_once(measure):
    model, data, logits, alive = make("llama"), batches(count=5), [], []

    def watch(module, args, output):
        assert output.past_key_values is None
        logits.append(weakref.ref(output.logits))
        alive.append(sum(one() is not None for one in logits))

    handle = model.register_forward_hook(watch)
    knowledge_of(model, cfsp.find_sites(model, ["mlp"]), data, Knowledge(measure=measure))
    handle.remove()
    assert len(alive) >= 5 * 3
    assert max(alive) <= 2


def test_measures_agree_in_sign_and_the_model_is_unchanged():
    model, data = make("llama"), batches(count=2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sites = cfsp.find_sites(model, ["mlp", "attention"])
    loss, perplexity, kl = (
        knowledge_of(model, sites, data, Knowledge(measure=one)) for one in ("loss", "perplexity", "kl")
    )
    dense = loss_of(model, data)
    for site in sites:
        for nats, more, divergence in zip(loss[site.name], perplexity[site.name], kl[site.name], strict=True):
            assert more == pytest.approx(math.exp(dense + nats) - math.exp(dense), rel=1e-3)
            assert divergence > 0
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_every_kind_of_site_can_be_masked():
    model = make("llama")
    for kinds in (["query_heads"], ["block"], ["hidden"]):
        sites = cfsp.find_sites(model, kinds)
        found = knowledge_of(model, sites, batches(count=1), Knowledge(ratios=(0.5,)))
        assert all(values[0] != 0 for values in found.values())
    bert = make("bert")
    sites = cfsp.find_sites(bert, ["mlp"])
    assert knowledge_of(bert, sites, batches(count=1), Knowledge(measure="kl"))
    with pytest.raises(ValueError, match="have no labels .*measure=kl"):
        knowledge_of(bert, sites, batches(count=1), Knowledge())


def test_the_most_sensitive_sites_are_protected():
    analysis = Knowledge(share=0.5)
    found = {"a": [0.1, 0.1], "b": [0.0, 0.9], "c": [0.3, 0.1], "d": [0.2, 0.2]}
    assert analysis.most_sensitive(found) == ["b", "c"]
    assert Knowledge(share=0.01).most_sensitive(found) == ["b"]
    with pytest.raises(ValueError, match="a: the deviation .*measure=loss, is nan"):
        analysis.most_sensitive({"a": [math.nan]})


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("allocator", [Uniform, GlobalRank, CFSP, ErrorCurves, UniformReleased])
@pytest.mark.parametrize("schedule", ["one_shot", "iterative", "blockwise"])
def test_a_plan_keeps_the_protected_sites_whole_and_says_why(allocator, schedule):
    if (allocator, schedule) == (ErrorCurves, "iterative"):
        pytest.skip("iterative has no probes")
    model, data = make("llama"), batches()
    options = {"kinds": ["mlp", "attention"], "criterion": "magnitude", "sparsity": 0.3}
    chosen = allocator(protect="knowledge", knowledge=Knowledge(share=0.3))
    plan = cfsp.plan(model, data, allocator=chosen, schedule=schedule, **options)
    notes = plan.notes["knowledge"]
    assert len(notes["protected"]) == 1
    means = {name: sum(values) for name, values in notes["deviations"].items()}
    assert notes["protected"] == [max(means, key=means.__getitem__)]
    kept = {edit.site: edit.stays for edit in plan.edits}
    assert kept[notes["protected"][0]][0] == kept[notes["protected"][0]][1]
    assert any(units > left for units, left in kept.values())


def test_the_analysis_is_cached_whatever_the_share(tmp_path, monkeypatch):
    model, data = make("llama"), batches()
    subject = Subject(model, cfsp.find_sites(model), Cache.at(tmp_path))
    first = knowledge_once(subject, data, Knowledge(share=0.1))
    calls = []
    monkeypatch.setattr(knowledge_pass, "deviations", lambda *_: calls.append(1) or [0.0])
    assert knowledge_once(subject, data, Knowledge(share=0.9)) == first
    assert not calls
    knowledge_once(subject, data, Knowledge(ratios=(0.1,)))
    assert calls


@pytest.mark.parametrize(
    ("share", "sparsity", "message"),
    [
        (None, 0.95, r"protect=knowledge \(0\.1 of the sites\) expected at most 0\.\d+"),
        (0.99, 0.1, r"protect=knowledge \(0\.99 of the sites\) expected at most 0\.0000"),
    ],
)
def test_more_than_can_go_is_refused(share, sparsity, message):
    analysis = None if share is None else Knowledge(share=share)
    chosen = Uniform(protect="knowledge", knowledge=analysis)
    options = {"kinds": ["mlp", "attention"], "criterion": "magnitude", "allocator": chosen}
    with pytest.raises(ValueError, match=message):
        cfsp.plan(make("llama"), batches(), sparsity=sparsity, **options)


def test_more_than_the_protected_sites_leave_is_refused():
    found = Protected(frozenset({"model.layers.0.mlp", "model.layers.1.mlp"}), 4)
    options = {"kinds": ["mlp", "attention"], "criterion": "magnitude", "allocator": Uniform(protect=found)}
    with pytest.raises(ValueError, match=r"protect=knowledge \(2 of 4 sites: model.* expected at most 0\.4"):
        cfsp.plan(make("llama"), batches(), sparsity=0.62, **options)


def test_ratios_that_mask_nothing_are_refused():
    """A fifth of an MLP's neurons are some, a fifth of four key/value groups is none."""
    options = {"criterion": "magnitude", "sparsity": 0.1}
    chosen = Uniform(protect="knowledge", knowledge=Knowledge(ratios=(0.1, 0.2)))
    model = make("llama")
    assert [site.units for site in cfsp.find_sites(model, ["attention"])] == [4, 4]
    cfsp.plan(model, batches(), kinds=["mlp"], allocator=chosen, **options)
    with pytest.raises(ValueError, match=r"ratios=\[0.1, 0.2\] mask none of the 4 units .* 0.25 or more"):
        cfsp.plan(model, batches(), kinds=["mlp", "attention"], allocator=chosen, **options)
    Knowledge(ratios=(0.3,)).check([Site("one", "attention", 1)])  # a single unit is none to lose


def test_what_is_protected_is_a_list_or_knowledge():
    with pytest.raises(
        ValueError, match=r"protect='everything': expected a list of block numbers, .*or know"
    ):
        Uniform(protect="everything")
    with pytest.raises(ValueError, match=r"knowledge beside protect=\[0\]: expected protect=knowledge"):
        Uniform(protect=[0], knowledge=Knowledge())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [1.0]}, "between 0 and 1"),
        ({"share": 1.0}, "share=1: expected a fraction of the sites"),
        ({"measure": "accuracy"}, "expected one of loss, perplexity, kl"),
        ({"batches": 0}, "batches=0"),
    ],
)
def test_options_of_the_analysis_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Knowledge(**options)


def test_a_run_protects_by_knowledge(cli):
    words = ["sites=[mlp,attention]", "allocator=uniform", "criterion=magnitude", "sparsity=0.3"]
    record = Record.load(cli(*words, "allocator.protect=knowledge"))
    assert len(record.notes["knowledge"]["protected"]) == 1
    more = Record.load(
        cli(
            *words,
            "allocator.protect=knowledge",
            "+allocator/knowledge=default",
            "allocator.knowledge.share=0.5",
        )
    )
    assert len(more.notes["knowledge"]["protected"]) == 2
    assert more.sparsity["sites"] >= 0.3
