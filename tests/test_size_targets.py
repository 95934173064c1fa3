"""Size targets: the largest model that has no more than so many parameters, bytes or multiplications."""

import pytest
import torch
from families import DISTINCT, batches, make, most_distinct
from two_stacks import make_pair

import cfsp
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.evaluation.size import Size
from cfsp.model.find_sites import find_sites
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.schedules.iterative import Iterative

BATCH, CONTEXT, TOKENS = 3, 20, 16
SHAPES = {
    "parameters": {},
    "memory": {"batch": BATCH, "context": CONTEXT},
    "macs": {"tokens": TOKENS},
}


def measured(model, kind):
    """What the evaluation `size` says of a real model."""
    found = Size(TOKENS if kind == "macs" else CONTEXT).run(model, None)
    value = {name: metric.value for name, metric in found.items()}
    cache = value.get("cache_bytes", 0)
    return {
        "parameters": value["parameters"],
        "memory": value["bytes_on_disk"] + BATCH * cache,
        "macs": value["macs_per_token"] * TOKENS,
    }[kind]


def planned(model, kind, amount, **options):
    parts = {"criterion": "magnitude", "allocator": "uniform", "kinds": ["mlp"]} | options
    return cfsp.plan(model, batches(), size_target={kind: amount, **SHAPES[kind]}, **parts)


def after(family, plan, kind):
    model = make(family)
    cfsp.apply(plan, model)
    return measured(model, kind)


def one_unit_wider(plan, sites):
    """The plans with one unit more at one site (one in each group)."""
    for site in sites:
        cuts = {cut.site: cut for cut in plan.edits}
        missing = cuts[site.name].removed
        if not missing:
            continue
        run = site.units // site.groups
        more = [next(unit for unit in missing if unit // run == group) for group in range(site.groups)]
        keep = tuple(sorted((*cuts[site.name].keep, *more)))
        cuts[site.name] = Cut(site.name, site.units, keep, cuts[site.name].fill, None, cuts[site.name].bias)
        yield PrunePlan(tuple(cuts.values()))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("family", most_distinct(["llama_mha_biased", "mistral", *DISTINCT]))
def test_the_largest_model_that_fits_is_made(family, kind):
    """The real model has no more than asked by `size`, and any unit more would be too many."""
    dense = make(family)
    amount = 0.85 * measured(dense, kind)
    plan = planned(dense, kind, amount)
    assert after(family, plan, kind) <= amount
    wider = [after(family, one, kind) for one in one_unit_wider(plan, find_sites(dense, ["mlp"]))]
    assert len(wider) == 2
    assert min(wider) > amount


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("allocator", ["uniform", "cfsp", "global_rank"])
@pytest.mark.parametrize("kinds", [["mlp", "attention"], ["mlp", "query_heads"], ["hidden"], ["block"]])
def test_it_is_met_within_a_unit_at_other_sites(kind, allocator, kinds):
    if allocator == "cfsp" and kinds[0] in ("hidden", "block"):
        pytest.skip("it weighs blocks")
    dense = make("llama")
    amount = 0.8 * measured(dense, kind)
    criterion = "depth" if kinds == ["block"] else "magnitude"
    plan = planned(dense, kind, amount, allocator=allocator, kinds=kinds, criterion=criterion)
    reached = after("llama", plan, kind)
    units = [before - reached for before in wider_by(plan, dense, kinds, kind)]
    assert reached <= amount < reached + max(units)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_allocator_that_counts_macs_meets_a_target_too(kind):
    dense, kinds = make("llama"), ["mlp", "attention"]
    amount = 0.85 * measured(dense, kind)
    plan = planned(dense, kind, amount, allocator=ErrorCurves(shares=(0.8,), budget="macs"), kinds=kinds)
    reached = after("llama", plan, kind)
    units = [before - reached for before in wider_by(plan, dense, kinds, kind)]
    assert reached <= amount < reached + max(units)


def wider_by(plan, dense, kinds, kind):
    return [after("llama", one, kind) for one in one_unit_wider(plan, find_sites(dense, kinds))]


@pytest.mark.parametrize("compensation", ["mean", "least_squares"])
@pytest.mark.parametrize("schedule", ["one_shot", "blockwise", "iterative"])
def test_biases_that_a_compensation_adds_count(schedule, compensation):
    more = {"constant": True} if compensation == "least_squares" else {}
    dense = make("llama")
    amount = 0.9 * measured(dense, "parameters")
    parts = {"criterion": "wanda_sp", "compensation": compensation, "schedule": schedule, **more}
    plan = planned(dense, "parameters", amount, **parts)
    model = make("llama")
    cfsp.apply(plan, model)
    assert model.model.layers[0].mlp.down_proj.bias is not None
    reached = measured(model, "parameters")
    assert reached <= amount < reached + 3 * 32


def test_steps_go_the_same_part_of_the_way_to_a_target(monkeypatch):
    seen = []
    whole = Iterative.allocate

    def allocate(self, state, scores, stats, method, part):
        widths = whole(self, state, scores, stats, method, part)
        seen.append(round(state.parameters(widths)))
        return widths

    monkeypatch.setattr(Iterative, "allocate", allocate)
    dense = make("llama")
    start = measured(dense, "parameters")
    planned(dense, "parameters", start - 4000, schedule="iterative", steps=4)
    for step, parameters in enumerate(seen, start=1):
        assert start - 1000 * step - 96 < parameters <= start - 1000 * step


def test_a_sliding_window_holds_no_more_than_the_window():
    """With a context far beyond the window the cache does not grow, so no more has to go."""
    plans = []
    for context in (8, 40):
        dense = make("mistral")
        target = {"memory": 80_000, "batch": 2, "context": context}
        parts = {"criterion": "magnitude", "allocator": "uniform", "size_target": target}
        plans.append(cfsp.plan(dense, batches(), **parts))
    first, second = ([cut.keep for cut in plan.edits] for plan in plans)
    assert first == second


def test_half_precision_halves_the_bytes():
    dense = make("llama").to(torch.bfloat16)
    amount = 0.9 * measured(dense, "memory")
    plan = planned(dense, "memory", amount)
    model = make("llama").to(torch.bfloat16)
    cfsp.apply(plan, model)
    assert measured(model, "memory") <= amount < measured(model, "memory") + 3 * 32 * 2


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_encoder_decoder_meets_a_target(name):
    rows = [{**batch, "labels": batch["input_ids"] % 20 + 4} for batch in batches()]
    rows = [{key: value % 24 if key == "input_ids" else value for key, value in row.items()} for row in rows]
    for kind in SHAPES:
        dense = make_pair(name)
        amount = 0.9 * measured(dense, kind)
        target = {kind: amount, **SHAPES[kind]}
        kinds = ["mlp", "attention", "cross_attention"]
        plan = cfsp.plan(
            dense, rows, kinds=kinds, criterion="magnitude", allocator="uniform", size_target=target
        )
        cfsp.apply(plan, dense)
        assert 0.7 * amount < measured(dense, kind) <= amount


def test_the_dense_model_is_left_as_it_was():
    dense = make("llama")
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    planned(dense, "macs", 0.9 * measured(dense, "macs"))
    assert all(torch.equal(weight, before[name]) for name, weight in dense.state_dict().items())
    assert dense.config._attn_implementation == make("llama").config._attn_implementation


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"parameters": 1e9},
            r"target.parameters=1B: the dense model has no more than \d+; expected l",
        ),
        ({"parameters": 100}, r"target.parameters=100: with sites=\[mlp\], .* at least \d+ stays"),
        (
            {"memory": "1kB", "batch": 1, "context": 8},
            r"target.memory=1kB: .* expected from \d+B to \d+B",
        ),
        ({"memory": "2gb", "batch": 1, "context": 8}, r"target.memory=2gb: expected bytes .* KiB, MiB, GiB"),
        ({"memory": 1e5, "batch": 0, "context": 8}, "target.batch=0: expected a whole number of at least 1"),
        ({"memory": 1e5, "batch": 1, "context": 99}, "target.context=99: the model has 48 positions"),
        ({"macs": "1M", "tokens": 99}, "target.tokens=99: the model has 48 positions"),
        ({"parameters": 5, "macs": 6}, "target.parameters=5 beside target.macs=6: expected one target"),
        ({"weight": 5}, "target.weight: no such target; expected one of target.parameters, target.memory"),
        ({"parameters": "many"}, "target.parameters=many: expected a number above 0, or one with k, M, B"),
    ],
)
def test_refusals_say_what_can_be_reached(target, message):
    with pytest.raises(ValueError, match=message) as error:
        cfsp.plan(make("llama"), batches(), criterion="magnitude", allocator="uniform", size_target=target)
    assert "\n" not in str(error.value)


def test_what_is_said_to_be_the_least_can_be_reached():
    with pytest.raises(ValueError, match="at least") as error:
        planned(make("llama"), "parameters", 100)
    least = int(str(error.value).split("at least ")[1].split()[0])
    plan = planned(make("llama"), "parameters", least)
    assert after("llama", plan, "parameters") == least
    with pytest.raises(ValueError, match=f"at least {least} stays"):
        planned(make("llama"), "parameters", least - 1)


def test_a_sparsity_beside_a_target_is_refused():
    with pytest.raises(ValueError, match="sparsity beside target.parameters=9k: expected one of them"):
        planned(make("llama"), "parameters", 9000, sparsity=0.3)
