"""Local reconstruction: what it tunes, towards what, and that nothing else changes."""

import copy

import pytest
import torch
from families import DECODERS, LLAMA, batches, kinds_of, make, most_distinct
from reconstructing import cut, examples, halves, reconstruction, tune, weights
from transformers import LlamaConfig, LlamaForCausalLM

from cfsp.model.blocks import block_modules, places_of
from cfsp.passes.walk import walking


@pytest.mark.parametrize("name", most_distinct(DECODERS))
def test_a_walk_is_the_models_own_pass(name):
    model, _ = cut(make(name), halves(make(name)))
    batch = batches(count=1, size=5, padded=True)[0]
    counted = batch["attention_mask"].bool()
    left = []
    for path in block_modules(model):
        model.get_submodule(path).register_forward_hook(
            lambda block, args, out: left.append(out if isinstance(out, torch.Tensor) else out[0])
        )
    with torch.no_grad():
        model(**batch)
    rows, parts = [4, 1, 0, 3, 2], [{"input_ids": part} for part in batch["input_ids"].split(2)]
    with walking(model, parts) as walk:
        for expected in copy.copy(left):
            called = walk.call(walk.block, rows)
            walk.advance()
            for found in (walk.take(rows), called):
                torch.testing.assert_close(
                    found[counted[rows]], expected[rows][counted[rows]], atol=1e-5, rtol=1e-5
                )


def test_modes_are_left_as_they_were(tmp_path):
    dense = make("gpt2")
    found = []
    for training in (False, True):
        pruned, change = cut(dense, halves(dense))
        tune(
            reconstruction(), dense.train(training), pruned.train(training), change, tmp_path / str(training)
        )
        assert all(module.training == training for one in (dense, pruned) for module in one.modules())
        found.append(weights(pruned))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("target", ["stream", "sublayer"])
@pytest.mark.parametrize("name", most_distinct(DECODERS))
def test_errors_never_rise_and_nothing_else_changes(name, target, tmp_path):
    dense = make(name)
    pruned, change = cut(dense, halves(dense))
    before = weights(pruned)
    training = tune(reconstruction(target=target), dense, pruned, change, tmp_path)
    done = training["sublayers"]
    assert [(one["block"], one["kind"]) for one in done] == [
        (block, kind) for block in (0, 1) for kind in sorted(kinds_of(dense))
    ]
    assert all(one["after"] <= one["before"] for one in done)
    assert sum(one["after"] < one["before"] for one in done) >= len(done) / 2
    places = places_of(dense, block_modules(dense)[0]).values()
    tuned = {path for place in places for path in (*place.producers, place.consumer)}
    changed = {key for key, value in weights(pruned).items() if not torch.equal(value, before[key])}
    assert changed
    assert all(any(f".{path}." in key for path in tuned) for key in changed)
    assert training["trainable"] == sum(
        value.numel() for key, value in before.items() if any(f".{path}." in key for path in tuned)
    )
    assert all(torch.equal(weight, make(name).state_dict()[key]) for key, weight in weights(dense).items())


WITHOUT_ATTENTION = ("olmo2", "stablelm_normed", "bloom", "falcon")
"""Families whose attention is not a site."""


@pytest.mark.parametrize("name", most_distinct(name for name in DECODERS if name not in WITHOUT_ATTENTION))
def test_a_whole_attention_has_nothing_to_answer_for(name, tmp_path):
    """While it is tuned the MLP gives what the dense one gives, in series or side by side."""
    dense = make(name)
    pruned, change = cut(dense, {"mlp": (0, 2, 5)})
    training = tune(reconstruction(sublayers="all"), dense, pruned, change, tmp_path)
    first, second = training["sublayers"][:2]
    assert first["kind"] == "attention"
    assert first["before"] == pytest.approx(0, abs=1e-9)
    assert second["before"] > 0.01


def test_errors_in_closed_form(tmp_path):
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_hidden_layers": 3})).eval()
    pruned, change = cut(dense, {"block": (0, 2)})
    rows = examples()
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows.every_held_out], True
    )
    counted = torch.arange(12) < torch.tensor([len(row["input_ids"]) for row in rows.every_held_out])[:, None]
    training = tune(reconstruction(sublayers="all", learning_rate=0), dense, pruned, change, tmp_path)

    def left(model, block):
        found = []
        handle = model.model.layers[block].register_forward_hook(lambda *call: found.append(call[2]))
        with torch.no_grad():
            model(ids)
        handle.remove()
        return found[0][counted]

    all_ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for part in rows for row in part], True
    )
    all_counted = (
        torch.arange(12) < torch.tensor([len(row["input_ids"]) for part in rows for row in part])[:, None]
    )
    hidden = dense(all_ids, output_hidden_states=True).hidden_states
    inner = []
    dense.model.layers[2].register_forward_hook(lambda *call: inner.append(call[2]))
    dense(all_ids)
    unit = (inner[0] - hidden[2])[all_counted].square().mean()
    expected = (left(pruned, 1) - left(dense, 2)).square().mean() / unit
    mlp = training["sublayers"][3]
    assert (mlp["block"], mlp["kind"]) == (1, "mlp")
    assert mlp["before"] == mlp["after"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("target", ["stream", "sublayer"])
def test_it_learns(target, tmp_path):
    dense = make("llama")
    pruned, change = cut(dense, halves(dense))
    told = []
    training = tune(
        reconstruction(target=target, steps=60, evaluate_every=20),
        dense,
        pruned,
        change,
        tmp_path,
        follow=lambda values, step: told.append((step, values["eval_loss"])),
        rows=examples(train=80),
    )
    assert all(one["after"] < 0.97 * one["before"] for one in training["sublayers"])
    assert training["steps"] == 4 * 60
    assert training["tokens"] == 40 * 12 + 40 * 9
    assert training["curve"][-1]["loss"] < training["curve"][-3]["loss"]
    assert [step for step, _ in told] == [row["step"] for row in training["curve"]]
    assert [step for step, _ in told] == list(range(20, 241, 20))


def test_the_same_seed_gives_the_same_weights(tmp_path):
    dense = make("gemma2")
    found = []
    for number, options in enumerate(({}, {}, {"hidden_states": "disk"}, {"seed": 1})):
        pruned, change = cut(dense, halves(dense))
        torch.manual_seed(number)
        tune(reconstruction(**options), dense, pruned, change, tmp_path / str(number))
        found.append(weights(pruned))
    first, *others = found
    same = [all(torch.equal(first[key], other[key]) for key in first) for other in others]
    assert same == [True, True, False]


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_an_interrupted_run_goes_on_with_the_next_block(name, tmp_path):
    dense = make(name)
    whole, change = cut(dense, halves(dense))
    killed, _ = cut(dense, halves(dense))
    expected = tune(reconstruction(), dense, whole, change, tmp_path / "whole")

    def kill(values, step):
        if step > 2 * 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(reconstruction(), dense, killed, change, tmp_path / "killed", kill)
    again, _ = cut(dense, halves(dense))
    steps = []
    found = tune(
        reconstruction(), dense, again, change, tmp_path / "killed", lambda values, step: steps.append(step)
    )
    assert min(steps) > 2 * 8
    assert all(torch.equal(weight, weights(whole)[key]) for key, weight in weights(again).items())
    for key in ("held_out_curve", "steps", "trainable"):
        assert found[key] == expected[key]


def test_what_is_gone_as_a_whole_is_passed_over(tmp_path):
    dense = make("llama")
    for gone, left in (("mlp", "attention"), ("attention", "mlp")):
        pruned, change = cut(dense, halves(dense) | {gone: ()})
        training = tune(reconstruction(), dense, pruned, change, tmp_path / gone)
        assert [one["kind"] for one in training["sublayers"]] == [left, left]


def test_where_nothing_was_cut_nothing_is_done(tmp_path, capsys):
    dense = make("llama")
    pruned, change = cut(dense, {"mlp": tuple(range(40))})
    before = weights(pruned)
    training = tune(reconstruction(), dense, pruned, change, tmp_path)
    assert "nothing to do" in capsys.readouterr().err
    assert (training["steps"], training["trainable"], training["tokens"]) == (0, 0, 0)
    assert all(torch.equal(weight, before[key]) for key, weight in weights(pruned).items())


def test_weights_keep_their_dtype(tmp_path):
    dense = make("llama").to(torch.bfloat16)
    pruned, change = cut(dense, halves(dense))
    training = tune(reconstruction(), dense, pruned, change, tmp_path)
    assert {weight.dtype for weight in pruned.parameters()} == {torch.bfloat16}
    assert all(one["after"] <= one["before"] for one in training["sublayers"])
    assert any(one["after"] < one["before"] for one in training["sublayers"])


def test_nan_is_refused_before_it_reaches_the_weights(tmp_path):
    dense = make("llama")
    pruned, change = cut(dense, halves(dense))
    before = weights(pruned)
    with pytest.raises(ValueError, match=r"block 0, attention, step \d: the .* is NaN.*learning_rate"):
        tune(reconstruction(learning_rate=1e30, evaluate_every=100), dense, pruned, change, tmp_path)
    assert all(torch.equal(weight, before[key]) for key, weight in weights(pruned).items())
    assert not list(tmp_path.glob("block-*"))


def test_patience_ends_a_sublayer_that_gets_no_better(tmp_path):
    dense = make("llama")
    pruned, change = cut(dense, halves(dense))
    recovery = reconstruction(learning_rate=0, steps=40, patience=2)
    training = tune(recovery, dense, pruned, change, tmp_path)
    assert [one["steps"] for one in training["sublayers"]] == [4, 4, 4, 4]


def test_a_cut_stream_is_refused(tmp_path):
    dense = make("llama")
    pruned, change = cut(dense, {"hidden": tuple(range(16))})
    with pytest.raises(ValueError, match="sites without hidden"):
        tune(reconstruction(), dense, pruned, change, tmp_path)
