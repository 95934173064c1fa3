"""Dropped blocks: a block may go as a whole in the ladder of its sites' widths, and be bridged."""

import copy

import pytest
import torch
from families import LLAMA, batches, make, words
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import cfsp
from cfsp.allocators.base import Budget
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.exchange_units import exchange_units
from cfsp.allocators.exchanges import Terms
from cfsp.allocators.ladders import Rung, descend_ladders, join_ladders, widths_at
from cfsp.compensation.least_squares import LeastSquares
from cfsp.model.find_sites import find_sites
from cfsp.model.views import unit_cost
from cfsp.schedules.bridges import runs_after
from cfsp.schedules.dropped_blocks import empty_blocks

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


def ladder(name, *steps):
    """steps: (width, spared, added)"""
    return [Rung({name: 10}, 0.0, 0.0), *(Rung({name: width}, *step) for width, *step in steps)]


def test_a_block_has_one_ladder_whose_last_rung_takes_all_of_it():
    mlp = ladder("mlp", (6, 4.0, 1.0), (3, 3.0, 1.5), (0, 3.0, 6.0))  # 0.25, 0.5, 2 for what they save
    heads = ladder("heads", (5, 5.0, 2.0), (0, 5.0, 5.0))  # 0.4, 1
    dear = join_ladders([mlp, heads], whole=16.5)
    assert [rung.widths for rung in dear[1:-1]] == [{"mlp": 6}, {"heads": 5}, {"mlp": 3}, {"heads": 0}]
    assert (dear[-1].widths, dear[-1].spared) == ({"mlp": 0, "heads": 0}, 3.0)
    assert dear[-1].added == pytest.approx(16.5 - 9.5)  # as measured, not 15.5 as the sites alone add up to
    cheap = join_ladders([mlp, heads], whole=6.0)
    assert [rung.widths for rung in cheap[1:-1]] == [{"mlp": 6}]
    assert (cheap[-1].spared, cheap[-1].added) == (16.0, 5.0)
    free = join_ladders([mlp, heads], whole=0.0)
    assert [(rung.spared, rung.added) for rung in free[1:]] == [(20.0, 0.0)]
    for one in (dear, cheap, free):
        assert sum(rung.spared for rung in one) == 20.0
        assert widths_at(one, len(one) - 1) == {"mlp": 0, "heads": 0}


def test_a_whole_block_competes_with_widths():
    mlp, heads = ladder("mlp", (0, 10.0, 9.0)), ladder("heads", (0, 10.0, 9.0))
    other = ladder("other", *((10 - step, 2.0, 0.2) for step in range(1, 11)))
    for whole, gone in ((1.0, {"block": 1}), (5.0, {"other": 10})):
        found, _ = descend_ladders({"block": join_ladders([mlp, heads], whole), "other": other}, 20.0)
        assert {name: rung for name, rung in found.items() if rung} == gone


def linear(sites, whole):
    """Statistics by which every site costs as much as any other, unit by unit. whole: block -> its error"""
    stats = {}
    for site in sites:
        widths = torch.arange(site.units + 1, dtype=torch.float64)
        stats[site.name] = {
            "error_curve": torch.stack([widths, 1 - widths / site.units], dim=1),
            "block_error": torch.tensor(whole[site.block]),
        }
    return stats


@pytest.mark.parametrize("whole", [[0.0] * 4, [0.5] * 4, [1.9] * 4, [3.0] * 4, [0.1, 2.5, 1.0, 2.0]])
@pytest.mark.parametrize("protect", [[], [0, 1], [1, 2, 3]])
def test_the_budget_is_met_to_one_unit_where_blocks_are_cheap(whole, protect):
    sites = find_sites(deep(4), BOTH)
    cost = {site.name: unit_cost(deep(4), site) for site in sites}
    total = sum(site.units * cost[site.name] for site in sites)
    for share in (0.01, 0.1, 0.24, 0.25, 0.3, 0.375, 0.6, 0.9):
        if share > 1 - len(protect) / 4:
            continue
        errors = {}
        for drop in (False, True):
            allocator = ErrorCurves(allow_empty=True, drop_blocks=drop, protect=protect)
            due = round(share * total)
            widths = allocator.allocate(sites, {}, linear(sites, whole), Budget.of(sites, cost, total - due))
            gone = sum((site.units - widths[site.name]) * cost[site.name] for site in sites)
            assert due <= gone < due + min(cost.values())
            assert all(widths[site.name] == site.units for site in sites if site.block in protect)
            errors[drop] = error_of(widths, sites, whole)
        assert errors[True] <= errors[False] + 1e-9


def error_of(widths, sites, whole):
    """The error of these widths, where the curves are linear."""
    gone = empty_blocks(widths, sites)
    left = (1 - widths[site.name] / site.units for site in sites if site.block not in gone)
    return sum(left) + sum(whole[block] for block in gone)


def test_a_cheap_block_goes_and_the_rest_is_saved_unit_by_unit():
    """Of two blocks that cost 0.5 each, 0.375 of four blocks takes one; the other would save too much."""
    sites = find_sites(deep(4), BOTH)
    cost = {site.name: unit_cost(deep(4), site) for site in sites}
    total = sum(site.units * cost[site.name] for site in sites)
    budget = Budget.of(sites, cost, total - round(0.375 * total))
    stats = linear(sites, [2.0, 0.5, 0.5, 2.0])
    widths = ErrorCurves(allow_empty=True, drop_blocks=True).allocate(sites, {}, stats, budget)
    assert len(empty_blocks(widths, sites)) == 1
    assert sum(0 < widths[site.name] < site.units for site in sites) > 0


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
    ],
)
def test_blocks_that_cannot_go_are_refused(family, options, said):
    parts = {"criterion": "wanda_sp", "kinds": BOTH, "allocator": ErrorCurves(**DROPPING)} | options
    with pytest.raises(ValueError, match=said):
        cfsp.plan(make(family), batches(), sparsity=0.5, **parts)


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="expected allow_empty=true"):
        ErrorCurves(drop_blocks=True)
    with pytest.raises(ValueError, match="expected tokens=equal"):
        LeastSquares(bridge=True, tokens="relative")
    with pytest.raises(ValueError, match="expected allocator.drop_blocks=true"):
        cfsp.plan(make("llama"), [], compensation=LeastSquares(bridge=True), allocator=ErrorCurves())
