"""LHSPG's units are exactly zero, and the cut model is the same function as the one that has them."""

import pytest
import torch
from families import FAMILIES, most_distinct
from fixed_sums import FixedSums
from lhspg_bench import Bench

import cfsp
from cfsp.plans.plan import PrunePlan
from cfsp.schedules.partly_cut import PartlyCut

MODELS = [*most_distinct(FAMILIES), "bart"]
SOME = ["llama", "llama_mha_biased", "phi3", "gpt2", "gpt_neox", "bert", "t5_gated"]
CASES = [("paper", "adamw"), ("paper", "sgd"), ("linear_decay", "adamw"), ("linear_decay", "sgd")]


def assert_zero(bench, site, units):
    rows = bench.rows_of(site, units)
    assert torch.equal(rows, torch.zeros_like(rows))


@pytest.mark.parametrize("family", [*MODELS, "t5_gated"])
def test_units_are_exactly_zero_at_the_end_of_every_period(family):
    zero_at_every_end(Bench(family))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("family", ["llama", "llama_mha_biased", "phi3", "gpt2"])
@pytest.mark.parametrize(("variant", "optimizer"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_are_exactly_zero_in_every_variant(family, variant, optimizer, dtype):
    zero_at_every_end(Bench(family, variant=variant, optimizer=optimizer, dtype=dtype))


def zero_at_every_end(bench):
    """Train, and look at all units that are gone by then at the end of every period."""
    pruning, asked = bench.pruning, []
    while bench.done < bench.steps:
        marked = {site.name: [*pruning.now[site.name].units] for site in pruning.sites}
        period = pruning.period
        bench.step()
        if 0 <= period < pruning.period:  # a period has just ended
            for site in pruning.sites:
                gone = pruning.zero_units(site)
                assert {*marked[site.name]} <= {*gone}
                if gone:
                    assert_zero(bench, site, gone)
            asked.append(pruning.removed())
    assert 0 < asked[0] < asked[1] < asked[2]
    assert 0.4 - 1e-6 <= asked[2] <= 0.4 + bench.dearest


def trained(family, dtype=None):
    """Train to the end. -> the model with its zero units, and the function that cuts them out of it."""
    bench = Bench(family, dtype=dtype)
    while bench.done < bench.steps:
        bench.step()
    keep, notes = bench.pruning.decided(), bench.pruning.detach()
    assert notes["reached"] >= 0.4 - 1e-6
    gone = sum(site.units - len(keep[site.name]) for site in bench.sites)
    assert sum(one["selected"] for one in notes["periods"]) == gone > 0
    model, adapters = bench.lora.detach(bench.module)
    assert adapters is None
    state = PartlyCut(model, bench.sites)
    plan = PrunePlan(tuple(state.cut(site, keep[site.name]) for site in bench.sites))
    return model.eval(), bench, keep, lambda: cfsp.apply(plan, model)


def answers(model, data):
    with torch.no_grad():
        return model(**data).logits


@pytest.mark.parametrize("family", MODELS)
def test_the_cut_model_is_bit_equal_where_sums_have_one_order(family):
    """In float32. Kernels that split a sum by its length round it otherwise: by 1e-6 here at most."""
    model, bench, _, cut = trained(family)
    masked = answers(model, bench.data)
    with FixedSums():
        exact = answers(model, bench.data)
    cut()
    with FixedSums():
        assert torch.equal(answers(model, bench.data), exact)
    assert float((answers(model, bench.data) - masked).abs().max()) <= 1e-6 * float(masked.abs().max())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", SOME)
def test_in_float64_the_cut_model_agrees_to_rounding(family):
    model, bench, _, cut = trained(family, torch.float64)
    masked = answers(model, bench.data)
    cut()
    assert float((answers(model, bench.data) - masked).abs().max()) <= 1e-13 * float(masked.abs().max())


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("family", ["llama", "llama_mha_biased", "phi3", "gpt2", "bert"])
def test_the_weights_that_are_left_are_bit_equal(family):
    """Rows and biases of what makes units, columns of what reads them; nothing else changes."""
    model, bench, keep, cut = trained(family)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    axes = {}  # of each tensor that shrinks: its name, its axis -> the places that go
    for site in bench.sites:
        gone = {*range(site.units)} - {*keep[site.name]}
        for member in site.members:
            found = [(f"{member.module}.weight", member.dim)]
            found += [(f"{member.module}.bias", 0)] if member.bias else []
            for key in found:
                axes[key] = axes.get(key, set()) | {*member.places(sorted(gone)).tolist()}
    for (name, axis), places in axes.items():
        if name in expected:
            left = [place for place in range(expected[name].shape[axis]) if place not in places]
            expected[name] = expected[name].index_select(axis, torch.tensor(left))
    cut()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
