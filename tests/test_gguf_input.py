"""GGUF as input: the model of a file computes what the exported one does, or is refused in one line."""

import importlib.util

import pytest
import torch
import transformers as t

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'cfsp[gguf]'")

from pydoc_data.topics import topics

from gguf import GGUFWriter
from gguf_models import LINEAR, LLAMA3, TOKENIZERS, build, exported, pruned

import cfsp
from cfsp.exports import gguf_file
from cfsp.exports.gguf_tensors import GGUFTensor
from cfsp.records.record import Record

NOTHING = cfsp.PrunePlan(())
LLAMA3_AS_PUBLISHED = LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}
IDS = torch.arange(5, 60).unsqueeze(0)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def gguf(tmp_path, family="llama", tokenizer=None, config=(), **options):
    """A random model and its GGUF file."""
    model = build(family, **dict(config))
    tokenizer = tokenizer or t.AutoTokenizer.from_pretrained(cfsp.checkpoints.load.REFERENCE)
    return model, exported(tmp_path, model, tokenizer, NOTHING, **{"type": "f32", **options})


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3_AS_PUBLISHED}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_the_model_of_a_file_computes_what_was_exported(family, config, tmp_path):
    model, path = gguf(tmp_path, family, config=config)
    again, _ = cfsp.load(path)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    assert getattr(again.config, "quantization_config", None) is None


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_its_tokenizer_gives_the_same_tokens_and_so_does_a_saved_one(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    _, path = gguf(tmp_path, tokenizer=tokenizer, config={"vocab_size": len(tokenizer) + 3})
    model, again = cfsp.load(path)
    cfsp.save(tmp_path / "plain", model, again, NOTHING)
    for one in (again, t.AutoTokenizer.from_pretrained(tmp_path / "plain")):
        for text in (*list(topics.values())[:20], "in 12345 of 67", "I'll  it's\n\n 3.14 naïve"):
            assert one(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.slow
def test_a_run_says_so_in_record_and_card_and_saves_a_plain_folder(cli, tmp_path):
    model, path = gguf(tmp_path, type="q8_0")
    (tmp_path / "tokenizer_config.json").write_text("of something else")
    found = Record.load(cli(f"model.path={path}", "evaluation=[]", "sparsity=0.3", f"save={tmp_path}/small"))
    assert found.dequantised == "q8_0"
    card = (tmp_path / "small" / "README.md").read_text()
    assert "read from a GGUF file of q8_0 weights, which were dequantised" in card
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path / "small", trust_remote_code=True)
    assert again.num_parameters() < model.num_parameters()
    assert "quantization_config" not in (tmp_path / "small" / "config.json").read_text()
    assert t.AutoTokenizer.from_pretrained(tmp_path / "small")("def f")["input_ids"]


def test_weights_are_the_rounded_ones(tmp_path):
    model, path = gguf(tmp_path, type="q8_0")
    ours = model.model.layers[0].mlp.down_proj.weight
    theirs = cfsp.load(path)[0].model.layers[0].mlp.down_proj.weight
    step = ours.view(len(ours), -1, 32).abs().amax(-1, keepdim=True) / 127
    apart = (ours - theirs).view(len(ours), -1, 32).abs()
    assert 0 < apart.max()
    assert (apart <= 0.51 * step + 1e-3 * step * 127).all()  # half a step, and the step itself is in float16


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("family", "config", "kinds", "error"),
    [
        ("gemma", {}, [], "of the architecture gemma, which .* does not read; expected one of .*llama"),
        ("llama", {}, ["mlp"], "of the architecture deci, which .* or the folder that it was made from"),
        ("llama", {"rope_parameters": LINEAR}, [], r"stretches its rotary angles \(linear\)"),
        ("llama", {"rope_parameters": LLAMA3}, [], r"stretches its rotary angles \(one of its own\)"),
    ],
)
def test_what_transformers_does_not_read_is_refused(family, config, kinds, error, tokenizer, tmp_path):
    model = build(family, **config)
    path = exported(tmp_path, model, tokenizer, pruned(model, kinds) if kinds else NOTHING, type="f32")
    with pytest.raises(ValueError, match=error):
        cfsp.load(path)


@pytest.mark.slow
def test_weights_that_transformers_skips_are_missed(tmp_path, monkeypatch):
    write = gguf_file.write_gguf
    bias = GGUFTensor("blk.0.ffn_down.bias", (64,), lambda: torch.ones(64))
    monkeypatch.setattr(
        gguf_file, "write_gguf", lambda writer, tensors, *rest: write(writer, [*tensors, bias], *rest)
    )
    _, path = gguf(tmp_path)
    with pytest.raises(ValueError, match="has .* weights, and transformers makes a model of .* of it"):
        cfsp.load(path)


def test_a_tokenizer_that_splits_in_an_unknown_way_is_refused(tmp_path, monkeypatch):
    write = GGUFWriter.add_tokenizer_pre
    monkeypatch.setattr(GGUFWriter, "add_tokenizer_pre", lambda writer, _: write(writer, "bailingmoe"))
    _, path = gguf(tmp_path)
    with pytest.raises(ValueError, match="tokenizer.ggml.pre=bailingmoe.* expected one of .*llama-bpe"):
        cfsp.load(path)


def test_a_file_that_is_not_there_is_not_sought_on_the_hub(cfsp):
    code, out, err = cfsp("model.path=my/none.gguf")
    assert (code, out) == (1, "")
    assert "expected a folder or a GGUF file, of which there is none" in err[-1]


def test_files_that_are_none_and_a_missing_package_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_text("GGML")
    for name, error in (("a", "is no GGUF file"), ("b", "there is no such file")):
        with pytest.raises(ValueError, match=error):
            cfsp.load(tmp_path / f"{name}.gguf")
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(ValueError, match="c.gguf' is a broken GGUF file"):
        cfsp.load(tmp_path / "c.gguf")
    with pytest.raises(ValueError, match="a GGUF file has head=causal_lm, not masked_lm"):
        cfsp.load(tmp_path / "a.gguf", head="masked_lm")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ValueError, match=r"needs the package gguf; expected pip install 'cfsp\[gguf\]'"):
        cfsp.load(tmp_path / "c.gguf")
