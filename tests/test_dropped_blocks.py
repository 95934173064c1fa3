"""Dropped blocks: a block may go as a whole in the ladder of its sites' widths, and be bridged."""

import copy

import pytest
import torch
from families import LLAMA, batches, make, words
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import cfsp
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.exchange_units import exchange_units
from cfsp.allocators.exchanges import Terms
from cfsp.compensation.least_squares import LeastSquares
from cfsp.criteria.wanda_sp import WandaSP
from cfsp.model.find_sites import find_sites
from cfsp.model.views import unit_cost
from cfsp.plans.subject import Subject
from cfsp.schedules import bridges
from cfsp.schedules.blockwise import Blockwise
from cfsp.schedules.bridges import runs_after
from cfsp.schedules.method import Method

BOTH = ["mlp", "attention"]
DROPPING = {"allow_empty": True, "drop_blocks": True, "shares": [0.8, 0.5, 0.3]}


def deep(blocks=5, idle=()):
    """A model whose idle blocks do next to nothing."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_hidden_layers": blocks})).eval()
    for block in idle:
        model.model.layers[block].mlp.down_proj.weight.data *= 0.01
        model.model.layers[block].self_attn.o_proj.weight.data *= 0.01
    return model


@pytest.mark.parametrize("schedule", ["one_shot", "blockwise"])
@pytest.mark.parametrize("rounds", [0, 3])
def test_idle_blocks_go_and_the_budget_is_met(schedule, rounds, tmp_path, tokens):
    model = deep(idle=(2, 3))
    sites = find_sites(model, BOTH)
    cost = {site.name: unit_cost(model, site) for site in sites}
    parts = {"criterion": "wanda_sp", "compensation": "least_squares", "kinds": BOTH, "schedule": schedule}
    allocator = ErrorCurves(**DROPPING, rounds=rounds, batches=2)
    plan = cfsp.plan(model, batches(4), sparsity=0.5, allocator=allocator, **parts)
    assert plan.edits[-1].removed == (2, 3)
    assert len(plan.notes["block_statistics"]["block_error"]) == 5
    gone = sum(len(cut.removed) * cost[cut.site] for cut in plan.edits[:-1])
    due = 0.5 * sum(site.units * cost[site.name] for site in sites)
    assert due - 1 <= gone < due + min(cost.values())
    whole = copy.deepcopy(model)
    cfsp.apply(plan, model)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    empty = type(plan)(plan.edits[:-1], plan.notes)  # the same without the drop
    cfsp.apply(empty, whole)
    cfsp.save(tmp_path / "m", model, words(), plan)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, model(**tokens).logits)
        torch.testing.assert_close(whole(**tokens).logits, model(**tokens).logits)


class OnlyBlocks(ErrorCurves):
    """Takes blocks 1 and 3, and nothing else."""

    def allocate(self, sites, scores, stats, budget):
        return {site.name: site.units * (site.block not in (1, 3)) for site in sites}


def test_a_model_that_loses_only_blocks_has_a_plain_config(tmp_path, tokens):
    model = deep()
    parts = {"criterion": "wanda_sp", "kinds": BOTH, "allocator": OnlyBlocks(**DROPPING)}
    plan = cfsp.plan(model, batches(), sparsity=0.4, **parts)
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, words(), plan)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(again) is LlamaForCausalLM
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, model(**tokens).logits)


class Fixed(ErrorCurves):
    """Takes blocks 2 and 3, and half of the others' MLPs but block 1's."""

    def allocate(self, sites, scores, stats, budget):
        self.check(sites, budget)
        widths = {site.name: site.units // (1 if site.kind == "attention" else 2) for site in sites}
        widths |= {site.name: site.units for site in sites if site.block == 1}
        return widths | {site.name: 0 for site in sites if site.block in (2, 3)}


class Halved(Fixed):
    """Takes half of block 1's MLP too."""

    def allocate(self, sites, scores, stats, budget):
        return super().allocate(sites, scores, stats, budget) | {"model.layers.1.mlp": 20}


@pytest.mark.parametrize(
    ("schedule", "target"), [("one_shot", "own"), ("blockwise", "own"), ("blockwise", "residual")]
)
@pytest.mark.parametrize("half", [False, True])
def test_a_bridge_lowers_the_error_of_dropped_blocks(schedule, target, half):
    """half: whether the MLP that is the bridge loses units itself."""
    model, data = deep(), batches(6, size=4, tokens=20)
    kind = Halved if half else Fixed
    errors, consumers = [], []
    with torch.no_grad():
        dense = torch.cat([model(**batch, output_hidden_states=True).hidden_states[4] for batch in data])
    for bridge in (False, True):
        fit = LeastSquares(ridge=1e-6, towards="kept", target=target, bridge=bridge)
        parts = {"criterion": "wanda_sp", "compensation": fit, "kinds": BOTH, "schedule": schedule}
        plan = cfsp.plan(model, data, sparsity=0.5, allocator=kind(**DROPPING), **parts)
        cut = copy.deepcopy(model)
        cfsp.apply(plan, cut)
        assert len(cut.model.layers) == 3
        consumers.append({one.site: one.consumer for one in plan.edits if one.site.endswith("1.mlp")})
        assert {one.site: one.stays for one in plan.edits}["model.layers.1.mlp"] == [40, 20 if half else 40]
        with torch.no_grad():  # the input of the block after the dropped ones
            given = torch.cat([cut(**batch, output_hidden_states=True).hidden_states[2] for batch in data])
        errors.append(float((given - dense).norm()))
    assert errors[1] < 0.95 * errors[0]
    assert consumers[1]["model.layers.1.mlp"].shape == (20 if half else 40, 32)


def test_runs_of_dropped_blocks():
    assert runs_after({0, 1, 3, 4, 7}) == {2: 4, 6: 7}
    assert runs_after(set()) == {}


class KnownBlocks:
    """Measures a known error of sites and of blocks."""

    def __init__(self, terms, error):
        self.terms, self.error = terms, error

    def around(self, widths, other):
        now = self.error(widths)
        return {
            name: {width: self.error({**widths, **self.terms.changed(name, width)}) - now for width in own}
            for name, own in other.items()
        }


def test_a_block_that_should_not_have_gone_is_exchanged_for_another():
    """Either of the blocks a and b can be spared, but not both; narrower sites are no way between."""
    blocks = {name: [f"{name}.mlp", f"{name}.heads"] for name in "abc"}
    rungs = {site: range(9) for names in blocks.values() for site in names}
    terms = Terms(rungs, dict.fromkeys(rungs, 1.0), 16, blocks)

    def error(widths):
        there = {name: all(widths[site] > 6 for site in sites) for name, sites in blocks.items()}
        return (
            10 * (not there["a"] and not there["b"])
            + 1 * (not there["c"])
            + 0.01 * sum(8 - width for width in widths.values())
        )

    start = {site: 8 * (site[0] == "c") for site in rungs}
    found = exchange_units(start, terms, KnownBlocks(terms, error), rounds=9)
    gone = {name for name, sites in blocks.items() if not any(found.widths[site] for site in sites)}
    assert len(gone & {"a", "b"}) == 1
    assert found.after < 2 < found.before
    assert sum(found.widths.values()) == 16


def test_a_protected_block_stays():
    model = deep(idle=(2, 3))
    parts = {"criterion": "wanda_sp", "kinds": BOTH}
    plan = cfsp.plan(model, batches(), sparsity=0.5, allocator=ErrorCurves(**DROPPING, protect=[2]), **parts)
    assert 2 in plan.edits[-1].keep
    with pytest.raises(ValueError, match=r"protect=\[2, 3\] expected at most 0.6000") as error:
        cfsp.plan(model, [], sparsity=0.7, allocator=ErrorCurves(**DROPPING, protect=[2, 3]), **parts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"kinds": ["mlp"]}, r"sites=\['mlp'\]: expected sites=\[mlp,attention\]"),
        ("llama", {"compensation": "mean"}, "adds a fill, which a dropped block cannot hold"),
        ("gpt2", {}, "transformer.h.0 of this gpt2 changes its input even without units"),
        ("bert", {}, "in a model whose attention can go"),
        (
            "gemma2",
            {"compensation": LeastSquares(bridge=True)},
            "^compensation.bridge=true: the blocks of a gemma2 .* expected compensation.bridge=false$",
        ),
    ],
)
def test_blocks_that_cannot_go_are_refused(family, options, said):
    parts = {"criterion": "wanda_sp", "kinds": BOTH, "allocator": ErrorCurves(**DROPPING)} | options
    with pytest.raises(ValueError, match=said):
        cfsp.plan(make(family), batches(), sparsity=0.5, **parts)


def test_a_bridge_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("cfsp.schedules.probes.probe", None)
    allocator, bridge = ErrorCurves(**DROPPING), LeastSquares(bridge=True)
    with pytest.raises(ValueError, match=r"expected compensation\.bridge=false"):
        cfsp.plan(make("gemma2"), batches(), allocator=allocator, compensation=bridge, kinds=BOTH)


@pytest.mark.parametrize("drop", [False, True])
def test_no_batches_are_refused(drop):
    allocator = ErrorCurves(allow_empty=True, drop_blocks=drop)
    with pytest.raises(ValueError, match="measures errors on calibration batches .* expected at least 1$"):
        cfsp.plan(make("llama"), [], allocator=allocator, criterion="magnitude", kinds=BOTH)


class First(ErrorCurves):
    """Takes blocks 0 and 4, and the MLP of block 3 too, or not."""

    bare = True

    def allocate(self, sites, scores, stats, budget):
        widths = {site.name: site.units * (site.block not in (0, 4)) for site in sites}
        return widths | ({"model.layers.3.mlp": 0} if self.bare else {})


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("schedule", "target"), [("one_shot", "own"), ("blockwise", "residual")])
def test_runs_that_cannot_be_bridged_are_named(schedule, target, bare, capsys, monkeypatch):
    monkeypatch.setattr(First, "bare", bare)
    parts = {"criterion": "wanda_sp", "compensation": LeastSquares(bridge=True, target=target)}
    allocator = First(**DROPPING, batches=1)
    plan = cfsp.plan(deep(), batches(), allocator=allocator, schedule=schedule, kinds=BOTH, **parts)
    assert plan.notes["bridges"] == {"of": [] if bare else [4], "not_of": [0, 4] if bare else [0]}
    said = f"cfsp: no bridge for the dropped blocks from {'0, 4' if bare else '0'} on:"
    assert capsys.readouterr().err.count(said) == 1


def test_bridges_store_hidden_states_where_the_schedule_does(monkeypatch):
    asked = []
    original = bridges.walking
    monkeypatch.setattr(
        bridges, "walking", lambda model, data, place: asked.append(place) or original(model, data, place)
    )
    schedule = Blockwise(sparsity=0.4, hidden_states="disk")
    parts = {"criterion": "wanda_sp", "compensation": LeastSquares(bridge=True), "kinds": BOTH}
    cfsp.plan(deep(), batches(), allocator=OnlyBlocks(**DROPPING), schedule=schedule, **parts)
    assert asked == ["disk"] * 2


def test_a_bridged_trial_pays_for_its_third_walk():
    model, data = deep(), batches(4)
    subject, passes = Subject(model, find_sites(model, BOTH)), []
    for bridge in (False, True):
        fit = LeastSquares(target="residual", bridge=bridge)
        method = Method(WandaSP(), ErrorCurves(**DROPPING), fit)
        passes.append(Blockwise(sparsity=0.4).cutter(subject, data, method, 2).passes)
    assert passes[1] - passes[0] == pytest.approx(0.5)  # through all blocks, on half of the batches


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="expected allow_empty=true"):
        ErrorCurves(drop_blocks=True)
    with pytest.raises(ValueError, match="expected tokens=equal"):
        LeastSquares(bridge=True, tokens="relative")
    with pytest.raises(ValueError, match="expected allocator.drop_blocks=true"):
        cfsp.plan(make("llama"), [], compensation=LeastSquares(bridge=True), allocator=ErrorCurves())
