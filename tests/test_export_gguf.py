"""GGUF: llama.cpp reads the file and computes what the pruned model computes."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from engine_or_skip import Engine
from gguf_models import (
    LINEAR,
    LLAMA3,
    PIECES,
    TEXT,
    TOKENIZERS,
    build,
    exported,
    metaspace,
    pruned,
)
from transformers import AutoTokenizer

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.exports.gguf_file import GGUF
from cfsp.exports.padded import Padded


def architecture(path):
    from gguf import GGUFReader

    return GGUFReader(path).fields["general.architecture"].contents()


@torch.no_grad()
def differences(model, engine, ids):
    """Largest difference of logits on a scale of 15, and the fraction of equal most probable tokens."""
    ours, theirs = model(torch.tensor([ids])).logits[0].numpy(), engine.logits(ids)
    largest = np.abs(ours - theirs).max() * 15 / max(15, np.abs(ours).max())
    return largest, (ours.argmax(-1) == theirs.argmax(-1)).mean()


def told(model, ids, count):
    settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()


BOTH, GONE = ["mlp", "attention"], ("0.attention", "1.mlp", "2.attention")
CASES = {
    "uneven_mlp": ("llama", {}, {"kinds": ["mlp"]}, "deci"),
    "uneven_groups": ("llama", {}, {"kinds": ["attention"]}, "deci"),
    "query_heads": ("llama", {"num_key_value_heads": 2}, {"kinds": ["query_heads"]}, "deci"),
    "hidden": ("llama", {}, {"kinds": ["hidden"]}, "llama"),
    "depth": ("llama", {}, {"kinds": ["block"]}, "llama"),
    "uniform": ("llama", {}, {"kinds": []}, "llama"),
    "tied": ("llama", {"tie_word_embeddings": True}, {"kinds": BOTH}, "deci"),
    "biases": ("llama", {}, {"kinds": BOTH, "fill": True}, "deci"),
    "own_biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {"kinds": BOTH}, "deci"),
    "empty": ("llama", {}, {"kinds": BOTH, "emptied": GONE}, "deci"),
    "empty_biases": ("llama", {}, {"kinds": BOTH, "emptied": GONE, "fill": True}, "deci"),
    "empty_mlp_below": (
        "llama",
        {},
        {"kinds": BOTH, "emptied": ("0.mlp", "1.attention"), "fill": True},
        "deci",
    ),
    "llama3_angles": ("llama", {"rope_parameters": LLAMA3}, {"kinds": BOTH}, "deci"),
    "linear_angles": ("llama", {"rope_parameters": LINEAR}, {"kinds": BOTH}, "deci"),
    "mistral": ("mistral", {}, {"kinds": BOTH, "fill": True}, "deci"),
    "mistral_whole": ("mistral", {}, {"kinds": []}, "llama"),
    "qwen2": ("qwen2", {}, {"kinds": BOTH, "fill": True, "emptied": GONE}, "deci"),
    "qwen2_whole": ("qwen2", {}, {"kinds": []}, "qwen2"),
    "qwen2_fewer_heads": ("qwen2", {"head_dim": 16}, {"kinds": []}, "deci"),
    "qwen3": ("qwen3", {}, {"kinds": BOTH}, "openelm"),
    "qwen3_empty": ("qwen3", {}, {"kinds": BOTH, "emptied": GONE}, "openelm"),
    "qwen3_whole": ("qwen3", {"tie_word_embeddings": False}, {"kinds": []}, "qwen3"),
    "phi3": ("phi3", {}, {"kinds": BOTH, "fill": True, "emptied": GONE}, "deci"),
    "phi3_whole": ("phi3", {}, {"kinds": []}, "llama"),
    "granite_whole": ("granite", {}, {"kinds": []}, "llama"),
    "granite": ("granite", {}, {"kinds": BOTH, "fill": True}, "deci"),
    "granite_tied": ("granite", {"tie_word_embeddings": True}, {"kinds": BOTH}, "deci"),
    "gemma_whole": ("gemma", {}, {"kinds": []}, "gemma"),
}


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same(case, tokenizer, tmp_path):
    family, config, cut, name = CASES[case]
    model = build(family, **config)
    plan = pruned(model, **cut) if cut["kinds"] else cfsp.PrunePlan(())
    path = exported(tmp_path, model, tokenizer, plan, type="f32")
    assert architecture(path) == name
    ids = torch.randint(2, 4000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    with Engine(path) as engine:
        largest, agreeing = differences(model, engine, ids)
        assert largest < 0.02
        assert agreeing > 0.98  # one of 64
        assert engine.greedy(ids[:20], 16) == told(model, ids[:20], 16)


EIGHT_BITS = {
    "uneven_groups": ("llama", {"head_dim": 8}, "deci"),
    "qwen3": ("qwen3", {"head_dim": 8}, "openelm"),
}


@pytest.mark.parametrize("case", EIGHT_BITS)
def test_uneven_heads_in_eight_bits_are_near(case, tokenizer, tmp_path):
    family, config, name = EIGHT_BITS[case]
    model = build(family, **config)
    path = exported(tmp_path, model, tokenizer, pruned(model, BOTH), type="q8_0")
    assert architecture(path) == name
    assert {kind for one, kind in types_of(path).items() if "norm" not in one} == {"Q8_0"}
    ids = torch.randint(2, 4000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    with Engine(path) as engine:
        largest, agreeing = differences(model, engine, ids)
    assert largest < 0.5
    assert agreeing > 0.8


def types_of(path):
    from gguf import GGUFReader

    return {one.name: one.tensor_type.name for one in GGUFReader(path).tensors}


WINDOW = 256


@pytest.fixture(scope="module")
def english():
    """60,000 characters of Python's own documentation, on which the reference model is no stranger."""
    return "\n".join(topics[name] for name in sorted(topics))[:60_000]


@pytest.fixture(scope="module")
def flapped(english, tokenizer):
    """The reference model as FLAP leaves it, with biases and uneven blocks, and its plan."""
    model, _ = cfsp.load("reference")
    ids = torch.tensor(tokenizer(english)["input_ids"][-1024:]).view(8, 128)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    parts = {"criterion": "flap", "allocator": "global_rank", "compensation": "mean"}
    plan = cfsp.plan(model, batches, kinds=["mlp", "attention"], sparsity=0.2, **parts)
    cfsp.apply(plan, model)
    return model, plan


@torch.no_grad()
def compared(model, engine, ids):
    """Relative change of perplexity, and the fraction of equal most probable tokens, in whole windows."""
    rows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    pairs = [(model(torch.tensor([row])).logits[0].numpy(), engine.logits(row)) for row in rows]
    sides = zip(*pairs, strict=True)
    ours, theirs = (np.mean([loss(one, row) for one, row in zip(side, rows, strict=True)]) for side in sides)
    agreeing = np.mean([pair[0].argmax(-1) == pair[1].argmax(-1) for pair in pairs])
    return np.exp(theirs - ours) - 1, agreeing


def loss(logits, ids):
    scores = torch.tensor(logits[:-1]).double().log_softmax(-1)
    return -scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean().item()


@pytest.mark.slow  # seconds
def test_llama_cpp_reads_a_text_as_torch_does(flapped, english, tokenizer, tmp_path):
    model, plan = flapped
    path = exported(tmp_path, model, tokenizer, plan, type="f32")
    ids = tokenizer(english)["input_ids"]
    with Engine(path) as engine:
        assert engine.ids(english) == ids
        change, agreeing = compared(model, engine, ids[: 16 * WINDOW])
    assert abs(change) < 1e-4
    assert agreeing >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kind_reads_a_text_as_torch_does(case, english, tokenizer, tmp_path):
    """Random weights: logits lie close together, so a few of 4,096 most probable tokens may change places."""
    family, config, cut, _ = CASES[case]
    model = build(family, **config)
    plan = pruned(model, **cut) if cut["kinds"] else cfsp.PrunePlan(())
    path = exported(tmp_path, model, tokenizer, plan, type="f32")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "m")  # beside a Qwen2 transformers splits as Qwen2 does
    ids = loaded(english)["input_ids"]
    with Engine(path) as engine:
        assert engine.ids(english) == ids
        change, agreeing = compared(model, engine, ids[: 16 * WINDOW])
    print(case, f"{change:.1e} {agreeing:.4%}")
    assert abs(change) < 1e-4
    assert agreeing >= 0.998


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_qwen2_say_the_same(seed, tokenizer, tmp_path):
    """In eight models, four prompts each, no greedy token of 32 differed."""
    model = build("qwen2", seed=seed)
    path = exported(tmp_path, model, tokenizer, pruned(model, BOTH, fill=True), type="f32")
    ids = torch.randint(2, 4000, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
    with Engine(path) as engine:
        assert engine.greedy(ids, 32) == told(model, ids, 32)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("kind", "most"), [("f16", 2e-4), ("bf16", 2e-3), ("q8_0", 5e-3)])
def test_smaller_types_keep_perplexity(kind, most, flapped, english, tokenizer, tmp_path):
    model, plan = flapped
    path = exported(tmp_path, model, tokenizer, plan, type=kind)
    with Engine(path) as engine:
        change, _ = compared(model, engine, tokenizer(english)["input_ids"][: 4 * WINDOW])
    assert abs(change) < most
    stored = types_of(path)
    assert set(stored.values()) == {kind.upper(), "F32"}
    assert stored["blk.0.ffn_down.weight"] == kind.upper()


@pytest.mark.parametrize("name", TOKENIZERS | PIECES)
def test_llama_cpp_finds_the_same_tokens(name, tmp_path):
    tokenizer = (TOKENIZERS | PIECES)[name]()
    model = build("llama", vocab_size=len(tokenizer) + 3)
    path = exported(tmp_path, model, tokenizer, cfsp.PrunePlan(()))
    texts = [TEXT, *(line for line in (REFERENCE / "tokenizer.json").read_text().splitlines()[:200])]
    with Engine(path) as engine:
        for text in texts:
            assert engine.ids(text) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_llama_cpp_puts_a_space_after_added_tokens_too(scheme, tmp_path):
    tokenizer, always = metaspace(scheme), PIECES["always"]()
    model = build("llama", vocab_size=len(tokenizer) + 3)
    with Engine(exported(tmp_path, model, tokenizer, cfsp.PrunePlan(()))) as engine:
        assert engine.ids(TEXT) == always(TEXT)["input_ids"]
        plain = TEXT.partition("\n\n")[0]
        assert engine.ids(plain) == tokenizer(plain)["input_ids"]


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_a_refused_model_goes_by_way_of_padding(family, tokenizer, tmp_path):
    model = build(family, tie_word_embeddings=family == "gemma")
    plan = pruned(model, ["mlp", "attention"])
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    Padded().export(tmp_path / "m", tmp_path / "padded")
    GGUF(type="f32").export(tmp_path / "padded", tmp_path / "out.gguf")
    with Engine(tmp_path / "out.gguf") as engine:
        assert differences(model, engine, [*range(5, 60)])[0] < 0.02
