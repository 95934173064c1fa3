"""Evaluation: sizes in closed form, times that compare, texts that must not be seen before."""

import json

import pytest
import torch
from families import FAMILIES, make, most_distinct, words
from transformers import LlamaConfig, LlamaForCausalLM

import cfsp.evaluation.latency
from cfsp.checkpoints.load import load
from cfsp.data.instructions import Conversations
from cfsp.data.overlaps import overlaps
from cfsp.data.texts import Files
from cfsp.evaluation.latency import Latency, cache_of
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.samples import Samples
from cfsp.evaluation.size import Size
from cfsp.evaluation.zero_shot import ZeroShot
from cfsp.model.blocks import is_causal
from cfsp.model.pass_cost import macs


def test_macs_of_a_llama_in_closed_form():
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    tokens = 10
    projections = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    expected = 3 * tokens * (projections + 2 * 32 * tokens) + tokens * 32 * 100
    rotary = macs(model, tokens) - expected  # frequencies times positions, one product for all blocks
    assert 0 <= rotary <= 8 * tokens
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", FAMILIES)
def test_size_counts_what_is_there(name):
    model = make(name)
    found = Size(context=4).run(model, None)
    assert found["parameters"].value == model.num_parameters()
    assert found["bytes_on_disk"].value == 4 * model.num_parameters()
    assert found["macs_per_token"].value > 0


def latency(**options):
    defaults = {"batch_sizes": [1, 2], "prompts": [4], "new_tokens": 3, "repeats": 3, "warmup": 1}
    return Latency(**{**defaults, **options})


def test_latency_of_an_encoder_is_that_of_one_pass():
    dense, pruned = make("bert"), make("bert", seed=1)
    found = latency(batch_sizes=[2]).run_pair(dense, pruned, words())
    assert set(found[1]) == {
        "forward_ms/b2xp4",
        "forward_tokens_per_s/b2xp4",
        "forward_speedup/b2xp4",
        "peak_mib/b2xp4",
        "weights_mib",
    }
    assert found[1]["forward_ms/b2xp4"].protocol["new_tokens"] == 0
    assert found[1]["forward_ms/b2xp4"].n == 3


def test_a_cache_goes_on_under_the_name_that_it_came_with(tiny, tokens, recwarn):
    ids = tokens["input_ids"][:, :8] % tiny.config.vocab_size
    with torch.no_grad():
        whole = tiny(input_ids=ids).logits[:, -1]
        before = tiny(input_ids=ids[:, :-1], use_cache=True)
        last = tiny(input_ids=ids[:, -1:], **cache_of(before)).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)
    assert not [one for one in recwarn if one.category is FutureWarning]


def test_latency_has_both_models_in_turns(tiny_checkpoint, monkeypatch):
    dense, tokenizer = load(tiny_checkpoint)
    pruned, _ = load(tiny_checkpoint)
    seconds = {id(dense): iter(range(100, 200)), id(pruned): iter(range(50, 100))}
    order = []

    def generate(self, model, ids):
        order.append(model is dense)
        return float(next(seconds[id(model)])), 1.0

    monkeypatch.setattr(cfsp.evaluation.latency.Latency, "generate", generate)
    found = latency(batch_sizes=[2]).run_pair(dense, pruned, tokenizer)
    assert order[:8] == [False, True, True, False, False, True, True, False]
    assert found[0]["prefill_ms/b2xp4"].value == 102_000
    assert found[1]["prefill_ms/b2xp4"].value == 52_000
    assert found[1]["prefill_ms/b2xp4"].spread == [51_000, 53_000]
    assert found[1]["prefill_speedup/b2xp4"].value == pytest.approx(102 / 52)
    assert found[0]["prefill_speedup/b2xp4"].value == 1
    assert found[1]["prefill_tokens_per_s/b2xp4"].value == pytest.approx(8 / 52)
    assert found[1]["decode_ms/b2xp4"].value == pytest.approx(1000 / 3)
    assert found[1]["decode_tokens_per_s/b2xp4"].value == 6
    assert found[1]["prefill_ms/b2xp4"].protocol["threads"] == torch.get_num_threads()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", most_distinct(FAMILIES))
def test_latency_runs_on_every_family(name):
    model = make(name)
    dense, pruned = latency(batch_sizes=[1]).run_pair(model, model, words())
    assert set(dense) == set(pruned)
    assert pruned[f"{'decode' if is_causal(model) else 'forward'}_ms/b1xp4"].value > 0
    assert pruned["weights_mib"].value == pytest.approx(4 * model.num_parameters() / 2**20)
    assert pruned["peak_mib/b1xp4"].value >= pruned["weights_mib"].value


def test_several_windows_in_one_go(tiny_checkpoint, text_file):
    model, tokenizer = load(tiny_checkpoint)
    parts = Perplexity(Files(str(text_file)), [16, 32], 8).parts()
    found = {name: metric for part in parts for name, metric in part.run(model, tokenizer).items()}
    assert {name for name in found if name.startswith("perplexity")} == {
        "perplexity/files:text.txt@16",
        "perplexity/files:text.txt@32",
    }
    alone = Perplexity(Files(str(text_file)), 32, 8).run(model, tokenizer)
    assert found["perplexity/files:text.txt@32"] == alone["perplexity/files:text.txt"]


def test_samples_are_greedy_and_leave_out_the_prompt(tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    (said,) = Samples(["a list of"], 5).say(model, tokenizer).values()
    ids = tokenizer("a list of", return_tensors="pt")["input_ids"]
    for _ in range(5):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert said == tokenizer.decode(ids[0, -5:], skip_special_tokens=True)


def test_overlaps_go_by_content_not_by_name(tmp_path):
    def text(name, *documents):
        for number, document in enumerate(documents):
            (tmp_path / f"{name}{number}.txt").write_text(document)
        return Files(str(tmp_path / f"{name}*.txt"))

    shared = "a document that both of them have got"
    made = text("made", shared, "another one that is only in the first")
    measured = text("measured", shared + "\n", "something else altogether, and long", "short")
    (warning,) = overlaps([made], [measured])
    assert "50.00% of it (1 of 2 windows of 20 words)" in warning
    assert overlaps([made], [text("other", "nothing of it is anywhere else")]) == []


def test_overlaps_are_seen_inside_documents_that_are_cut_otherwise(tmp_path):
    words = [f"word{number * 7919 % 1009}" for number in range(1000)]
    (tmp_path / "whole.txt").write_text(" ".join(words))
    (tmp_path / "half.txt").write_text("before it\n" + "\n".join(words[300:800]) + " and behind")
    whole, half = Files(str(tmp_path / "whole.txt")), Files(str(tmp_path / "half.txt"))
    (warning,) = overlaps([whole], [half])
    assert float(warning.split("and ")[1].split("%")[0]) > 90
    (warning,) = overlaps([half], [whole])
    assert 35 < float(warning.split("and ")[1].split("%")[0]) < 65


@pytest.mark.slow
def test_overlaps_are_seen_in_instructions_and_questions(tmp_path):
    goal = "how to open a jar that has a tight lid"
    question = {"goal": goal, "sol1": "twist it", "sol2": "sing", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(question))
    row = {"prompt": f"{goal} twist it sing", "response": ""}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    made = Conversations(form="pairs", paths=str(tmp_path / "rows.jsonl"))
    task = ZeroShot(["piqa"], 0, None, 1, files={"piqa": str(tmp_path / "piqa.jsonl")})
    (warning,) = overlaps([made], task.reads())
    assert warning.startswith("piqa is measured on, and 100.00% of it")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a " * 80], "new_tokens=.*the model has 64 positions"),
        ([""], "prompt '' has no token"),
        ([3], "expected a list of texts"),
    ],
)
def test_bad_samples_are_found_before_anything_runs(prompts, message, tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    with pytest.raises(ValueError, match=message):
        Samples(prompts, 5).check(model, tokenizer)


def test_an_encoder_does_not_speak():
    with pytest.raises(ValueError, match="causal"):
        Samples(["a"], 5).check(make("bert"), None)


@pytest.mark.slow
def test_a_run_flags_the_text_it_was_calibrated_on(tiny_overrides, tmp_path):
    from hydra import compose, initialize_config_dir

    from cfsp.running.build import CONF
    from cfsp.running.run import run

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*tiny_overrides(), f"results={tmp_path}"])
    (warning,) = run(cfg).overlaps
    assert "files:text.txt" in warning
