"""The joint search: exchanges of units between sites that lower the error of the model cut everywhere."""

import pytest
import torch
from families import LLAMA, batches, make
from known_errors import Known
from transformers import LlamaConfig, LlamaForCausalLM

import cfsp
from cfsp.allocators.base import Budget
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.exchange_units import exchange_units
from cfsp.criteria.obs import OBS as Surgeon
from cfsp.model.find_sites import find_sites
from cfsp.model.views import unit_cost
from cfsp.plans.plan import Cut
from cfsp.schedules import joint
from cfsp.schedules.dense_answers import log_probabilities
from cfsp.schedules.one_shot import RememberedCuts
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics import collect as collection

BOTH = ["mlp", "attention"]
OBS = {"criterion": "obs", "compensation": "least_squares"}


def redundant():
    """Return a model whose first three MLPs do the same. The norm at the end makes each alone dispensable.

    The MLPs read the first half of the stream, and write to the second half, which the head reads.
    """
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | sizes)).eval()
    first, half = model.model.layers[0].mlp, LLAMA["hidden_size"] // 2
    model.model.embed_tokens.weight.data[:, half:] = 0
    model.model.embed_tokens.weight.data *= 2
    model.lm_head.weight.data[:, :half] = 0
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.weight.data.zero_()
        layer.post_attention_layernorm.variance_epsilon = 1e6  # neither grows nor shrinks what the MLP reads
        layer.post_attention_layernorm.weight.data[:] = 1e3
        mlp = layer.mlp
        if number < 3:
            mlp.load_state_dict(first.state_dict())
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight.data[:, half:] = 0
        mlp.down_proj.weight.data[:half] = 0
    return model


def error_of(model, plan):
    sites = find_sites(model, ["mlp"])
    with torch.no_grad():
        dense = torch.cat([log_probabilities(model, batch) for batch in batches()])
        with PartlyCut(model, sites, plan.edits).gates():
            cut = torch.cat([log_probabilities(model, batch) for batch in batches()])
    return float(torch.nn.functional.kl_div(cut, dense, log_target=True, reduction="batchmean"))


def test_copies_are_not_all_cut():
    model = redundant()
    parts = {"criterion": "wanda_sp", "sparsity": 0.7}
    greedy, found = (
        cfsp.plan(model, batches(), allocator=ErrorCurves(rounds=rounds, passes=1000), **parts)
        for rounds in (0, 12)
    )
    widths = [[len(cut.keep) for cut in plan.edits] for plan in (greedy, found)]
    assert max(widths[0][:3]) < 20 < max(widths[1][:3])
    assert sum(widths[0]) == sum(widths[1])
    assert error_of(model, found) < 0.75 * error_of(model, greedy)


def test_without_rounds_the_plan_is_that_of_the_curves_alone(monkeypatch):
    model = make("llama")
    parts = OBS | {"kinds": BOTH, "sparsity": 0.5, "schedule": "blockwise"}
    plan = cfsp.plan(model, batches(), allocator=ErrorCurves(), **parts)
    assert "joint_search" not in plan.notes
    monkeypatch.setattr(joint, "exchange_units", lambda *_: pytest.fail("it searched"))
    assert cfsp.plan(model, batches(), allocator=ErrorCurves(rounds=0), **parts).notes == plan.notes


@pytest.mark.parametrize("schedule", ["one_shot", "blockwise"])
@pytest.mark.parametrize(
    "options", [{}, {"round_to": 8}, {"allow_empty": True}, {"budget": "macs"}, {"protect": [1]}]
)
def test_the_plan_meets_the_budget(schedule, options):
    model = make("llama")
    allocator = ErrorCurves(rounds=5, shares=[0.8, 0.3], batches=2, **options)
    parts = OBS | {"kinds": BOTH, "schedule": schedule, "sparsity": 0.4}
    plan = cfsp.plan(model, batches(), allocator=allocator, **parts)
    notes = plan.notes["joint_search"]
    assert notes["after"] <= notes["before"]
    cuts, sites = {cut.site: cut for cut in plan.edits}, find_sites(model, BOTH)
    step = options.get("round_to", 1)
    cost = {site.name: unit_cost(model, site) for site in sites}
    gone = sum(len(cuts[name].removed) * cost[name] for name in cuts)
    due = 0.4 * sum(site.units * cost[site.name] for site in sites)
    if options.get("budget") != "macs":
        assert due - 1 <= gone < due + step * min(cost.values())
    for site in sites:
        width = len(cuts[site.name].keep)
        assert width == site.units or width % (step if site.kind == "mlp" else site.groups) == 0
        assert width or options.get("allow_empty")
        assert width == site.units or site.block not in options.get("protect", ())


def test_a_search_that_makes_no_trial_says_so(capsys):
    allocator = ErrorCurves(rounds=9, passes=0.1, batches=2)
    cfsp.plan(make("llama"), batches(), allocator=allocator, kinds=BOTH, sparsity=0.5, **OBS)
    assert "made no trial: the first takes 0.7 passes; expected at least so many" in capsys.readouterr().err


def test_the_passes_are_capped_and_noted():
    model = make("llama")
    notes = []
    for passes in (2, 8, 1000):
        allocator = ErrorCurves(rounds=9, passes=passes, batches=2)
        plan = cfsp.plan(model, batches(), allocator=allocator, kinds=BOTH, sparsity=0.5, **OBS)
        notes.append(plan.notes["joint_search"])
        assert notes[-1]["passes"] <= passes
    assert notes[0]["before"] is None or not notes[0]["moves"]
    assert notes[1]["passes"] < notes[2]["passes"]


def test_a_stored_search_is_not_repeated(tmp_path, monkeypatch):
    model = make("llama")
    parts = OBS | {"allocator": ErrorCurves(rounds=3), "kinds": BOTH, "sparsity": 0.5, "cache": tmp_path}
    plan = cfsp.plan(model, batches(), **parts)
    monkeypatch.setattr(joint, "exchange_units", lambda *_: pytest.fail("it searched again"))
    again = cfsp.plan(model, batches(), **parts)
    assert again.notes == plan.notes
    assert [cut.keep for cut in again.edits] == [cut.keep for cut in plan.edits]


def test_a_killed_search_goes_on_from_its_last_measurement(tmp_path, monkeypatch):
    model, measured = make("llama"), []
    parts = OBS | {"allocator": ErrorCurves(rounds=3), "kinds": BOTH, "sparsity": 0.5}
    whole = cfsp.plan(model, batches(), **parts, cache=tmp_path / "whole")
    counted = joint.divergence

    def dies(*arguments):
        measured.append(1)
        if len(measured) == 12:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(joint, "divergence", dies)
    with pytest.raises(KeyboardInterrupt):
        cfsp.plan(model, batches(), **parts, cache=tmp_path / "killed")
    measured.clear()
    monkeypatch.setattr(joint, "divergence", lambda *arguments: measured.append(1) or counted(*arguments))
    again = cfsp.plan(model, batches(), **parts, cache=tmp_path / "killed")
    resumed = len(measured)
    measured.clear()
    assert again.notes == whole.notes
    assert [cut.keep for cut in again.edits] == [cut.keep for cut in whole.edits]
    cfsp.plan(model, batches(), **parts, cache=tmp_path / "other")
    assert resumed < len(measured)


@pytest.mark.parametrize(("used", "said"), [(1, False), (8, True)])
def test_batches_that_are_cut_on_and_measured_are_told(used, said, capsys):
    allocator = ErrorCurves(rounds=1, batches=used)
    options = OBS | {"schedule": "blockwise", "allocator": allocator, "kinds": BOTH, "sparsity": 0.5}
    cfsp.plan(make("llama"), batches(), **options)
    assert ("measures on some of the batches" in capsys.readouterr().err) == said


class Lopsided(ErrorCurves):
    """Leaves the first MLP whole, and takes all from the second."""

    def allocate(self, sites, scores, stats, budget):
        first, second = sites
        left = (budget.keep - first.units * budget.cost[first.name]) // budget.cost[second.name]
        self.check(sites, budget)
        return {first.name: first.units, second.name: max(left, 1)}


def test_no_bias_of_a_first_cut_leaves_a_target():
    model = make("llama")
    amount = sum(weight.numel() for weight in model.parameters()) - 2072
    options = {"criterion": "chance", "compensation": "mean", "size_target": {"parameters": amount}}
    cfsp.apply(cfsp.plan(model, batches(), allocator=Lopsided(rounds=9, passes=1000), **options), model)
    assert sum(weight.numel() for weight in model.parameters()) <= amount


def test_a_site_of_one_width_needs_no_price():
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 1}))
    sites = find_sites(model, BOTH)
    stats = {site.name: {"unit_cost": torch.tensor(float(site.kind == "mlp"))} for site in sites}
    cost = {site.name: unit_cost(model, site) for site in sites}
    search = ErrorCurves(rounds=1).search(sites, stats, Budget.of(sites, cost, 10_000))
    start = {site.name: site.units // 2 or 1 for site in sites}
    known = Known(lambda widths: 40 - widths[sites[0].name])
    assert exchange_units(start, search.terms, known, rounds=3).moves


def test_what_cannot_be_searched_is_refused():
    shared = ["attention", "query_heads"]
    with pytest.raises(ValueError, match="allocator.rounds needs sites that share no weights"):
        cfsp.plan(make("llama"), [], criterion="magnitude", allocator=ErrorCurves(rounds=1), kinds=shared)
    macs = ErrorCurves(rounds=1, budget="macs")
    with pytest.raises(ValueError, match=r"target.parameters=18k with allocator.rounds and .*budget=macs"):
        cfsp.plan(make("llama"), [], allocator=macs, size_target={"parameters": 18_000})
    with pytest.raises(ValueError, match="schedule=one_shot or blockwise"):
        cfsp.plan(make("llama"), batches(), schedule="iterative", allocator=ErrorCurves(rounds=1))
    with pytest.raises(ValueError, match="would leave a width of zero units"):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(rounds=1, protect=[0]), sparsity=0.6)
    for options in ({"rounds": -1}, {"passes": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            ErrorCurves(**options)


def test_gradients_are_measured_once_for_all_probes_and_once_for_all_trials(monkeypatch):
    """Without a cache too: of the batches that probes fit on, those that trials cut on, and all."""
    read = []
    original = collection.backpropagate
    monkeypatch.setattr(
        collection,
        "backpropagate",
        lambda model, sites, data, *rest: read.append(len(data)) or original(model, sites, data, *rest),
    )
    parts = OBS | {"criterion": Surgeon(metric="fisher"), "kinds": BOTH, "schedule": "blockwise"}
    data = [*batches(), *batches(seed=1)]
    for rounds in (1, 4):
        read.clear()
        allocator = ErrorCurves(rounds=rounds, batches=2)
        plan = cfsp.plan(make("llama"), data, allocator=allocator, sparsity=0.5, **parts)
        assert plan.notes["joint_search"]["before"]
        assert read == [len(data) - 2, 2, len(data)]


def test_remembered_cuts_are_those_that_would_be_made_again():
    asked = []

    def make_all(widths):
        asked.append({name: [*own] for name, own in widths.items() if own})
        return {name: [Cut(name, 9, tuple(range(width))) for width in own] for name, own in widths.items()}

    cut = RememberedCuts(make_all)
    for widths, new in (
        ({"a": [3], "b": [4]}, {"a": [3], "b": [4]}),
        ({"a": [3, 2, 5], "b": [4]}, {"a": [2, 5]}),
        ({"a": [2], "b": [4]}, {"a": [2]}),  # only present widths are remembered
        ({"a": [2], "b": [4]}, {}),
    ):
        made = cut(widths)
        assert asked[-1] == new
        assert {name: [len(one.keep) for one in cuts] for name, cuts in made.items()} == widths
