"""Bridges: the MLP before dropped blocks is refitted to what they added."""

import copy

import pytest
import torch
import transformers as t
from families import LLAMA, batches, make, words

import cfsp
from cfsp.api import deciders
from cfsp.compensation.bridge import Bridge
from cfsp.model.find_sites import find_sites
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.bridges import bridged
from cfsp.storage.cache import Cache

BLOCKS = 6
TIGHT = Bridge(ridge=1e-9)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return t.LlamaForCausalLM(t.LlamaConfig(**LLAMA | {"num_hidden_layers": BLOCKS})).eval()


def dropping(*gone):
    return PrunePlan((Cut("model.layers.block", BLOCKS, tuple(set(range(BLOCKS)) - {*gone})),))


def stream(model, data, after):
    """The residual stream after some blocks. [tokens, hidden]"""
    with torch.no_grad():
        return torch.cat(
            [model(**batch, output_hidden_states=True).hidden_states[after].flatten(0, 1) for batch in data]
        )


def heard(model, path, data):
    """The inputs of a layer. [tokens, channels]"""
    found = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda module, inputs: found.append(inputs[0].flatten(0, 1))
    )
    stream(model, data, 0)
    handle.remove()
    return torch.cat(found)


def without_first(model, count):
    """The model as it is after its first blocks went. Nothing if none goes."""
    cut = copy.deepcopy(model)
    if count:
        cfsp.apply(dropping(*range(count)), cut)
    return cut


@pytest.mark.parametrize("before", [0, 1])
def test_a_bridge_is_the_least_squares_fit_to_the_dense_stream_after_the_run(model, before):
    """before: number of blocks that go at the beginning, where there is nothing to bridge with."""
    data = batches(4, size=4, tokens=20)
    plan = bridged(dropping(*range(before), 3, 4), model, data, TIGHT)
    (cut,) = plan.edits[1:]
    assert (cut.site, len(cut.keep)) == ("model.layers.2.mlp", cut.units)
    pruned, place = without_first(model, before), 2 - before
    x = heard(pruned, f"model.layers.{place}.mlp.down_proj", data).double()
    weight = model.model.layers[2].mlp.down_proj.weight.detach().double()
    wanted = x @ weight.T + (stream(model, data, 5) - stream(pruned, data, place + 1)).double()
    expected = torch.linalg.lstsq(x, wanted).solution
    torch.testing.assert_close(cut.consumer.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gone", [(2, 3), (1, 3, 4), (0, 3), (5,)])
def test_it_is_nearer_to_the_dense_stream_than_dropping_alone(model, gone):
    data = batches(4, size=4, tokens=20)
    dense = stream(model, data, BLOCKS - 1) if BLOCKS - 1 not in gone else None
    errors = []
    wanted = torch.cat([model(**batch).logits.flatten(0, 1) for batch in data]) if dense is None else dense
    for plan in (dropping(*gone), bridged(dropping(*gone), model, data, TIGHT)):
        cut = copy.deepcopy(model)
        cfsp.apply(plan, cut)
        left = BLOCKS - len(gone)
        assert len(cut.model.layers) == left
        if dense is None:
            given = torch.cat([cut(**batch).logits.flatten(0, 1) for batch in data])
        else:
            given = stream(cut, data, left - 1)
        errors.append(float((given - wanted).norm().detach()))
    assert errors[1] < 0.9 * errors[0]


def test_a_run_at_the_beginning_has_no_bridge(model):
    assert len(bridged(dropping(0, 1), model, batches(), TIGHT).edits) == 1


def test_blocks_that_add_nothing_leave_the_weights_as_they_are(model):
    for block in (2, 3):
        model.model.layers[block].mlp.down_proj.weight.data.zero_()
        model.model.layers[block].self_attn.o_proj.weight.data.zero_()
    (cut,) = bridged(dropping(2, 3), model, batches(), Bridge()).edits[1:]
    torch.testing.assert_close(
        cut.consumer, model.model.layers[1].mlp.down_proj.weight.T, rtol=1e-4, atol=1e-5
    )


def test_the_folder_is_a_plain_one(model, tmp_path, tokens):
    plan = cfsp.plan(
        model, batches(), kinds=["block"], criterion="depth", allocator="uniform", compensation="bridge",
        sparsity=0.34,
    )  # fmt: skip
    assert len(plan.edits) > 1
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, words(), plan)
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, model(**tokens).logits)


def test_what_cannot_be_bridged_is_refused(model):
    with pytest.raises(ValueError, match=r"makes up for units of block alone; expected sites=\[block\]"):
        cfsp.plan(model, batches(), compensation="bridge", criterion="magnitude", allocator="uniform")
    for ridge in (0, -1.0):
        with pytest.raises(ValueError, match=rf"compensation ridge={ridge}: expected a number above 0$"):
            Bridge(ridge=ridge)


def test_blocks_that_norm_what_their_mlps_give_are_refused_before_anything_is_measured():
    gemma = make("gemma2")
    parts = {"criterion": "depth", "allocator": "uniform", "compensation": "bridge", "schedule": "one_shot"}
    decider, method = deciders(parts, {}, {"sparsity": 0.5}, seed=0)
    with pytest.raises(ValueError, match=r"bridge: the blocks of a gemma2 do not .*; expected compens"):
        decider.prepare(Subject(gemma, find_sites(gemma, ["block"]), Cache.at("off")), method)


def test_a_run_bridges_and_says_so(cli, tmp_path):
    words = ["sites=[block]", "criterion=depth", "allocator=uniform", "compensation=bridge", "sparsity=0.5"]
    from cfsp.records.record import Record

    record = Record.load(cli(*words, f"save={tmp_path}/out"))
    assert any(name.endswith(".mlp") and left == units for name, (units, left) in record.widths.items())
