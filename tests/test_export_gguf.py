"""GGUF: llama.cpp reads the file and computes what the pruned model computes."""

import json
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
import transformers as t
from engine_or_skip import Engine
from gguf_models import (
    LINEAR,
    LLAMA3,
    PIECES,
    SPACES,
    TEXT,
    TOKENIZERS,
    build,
    exported,
    metaspace,
    pieces,
    pruned,
    trained,
)
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.cli.export import main
from cfsp.exports.gguf_file import GGUF, plain_name
from cfsp.exports.padded import Padded
from cfsp.exports.vocabulary import check_vocabulary_form


@pytest.fixture(scope="session")
def tokenizer():
    return t.AutoTokenizer.from_pretrained(REFERENCE)


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


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("kind", "most"), [("f16", 2e-4), ("bf16", 2e-3), ("q8_0", 5e-3)])
def test_smaller_types_keep_perplexity(kind, most, flapped, english, tokenizer, tmp_path):
    model, plan = flapped
    path = exported(tmp_path, model, tokenizer, plan, type=kind)
    with Engine(path) as engine:
        change, _ = compared(model, engine, tokenizer(english)["input_ids"][: 4 * WINDOW])
    assert abs(change) < most
    from gguf import GGUFReader

    stored = {one.name: one.tensor_type.name for one in GGUFReader(path).tensors}
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


@pytest.mark.parametrize("kind", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_look_at_their_neighbours_are_refused(kind):
    with pytest.raises(ValueError, match=rf"added token '<\|end\|>' with {kind}, which .*{kind}=false"):
        check_vocabulary_form(pieces(SPACES, **{kind: True}))


def test_pieces_that_only_llama_cpp_would_merge_are_refused():
    tokenizer = PIECES["gemma"]()
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    left, right = table["model"]["merges"].pop()
    fewer = t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(table)))
    with pytest.raises(ValueError, match=f"does not merge {left!r} and {right!r}, which llama.cpp would"):
        check_vocabulary_form(fewer)


UNKNOWN = {
    "Whitespace": lambda: trained(pre_tokenizers.Whitespace()),
    "Lowercase": lambda: trained(pre_tokenizers.ByteLevel(False), normalizers.Lowercase()),
    "add_prefix_space": lambda: trained(pre_tokenizers.ByteLevel(True)),
}


@pytest.mark.parametrize("said", UNKNOWN)
def test_tokenizers_without_a_name_are_refused(said):
    with pytest.raises(ValueError, match=f"{said}.*llama.cpp has no name for; expected .*smollm.*padded"):
        check_vocabulary_form(UNKNOWN[said]())


def test_a_tokenizer_of_words_is_refused():
    from families import words

    with pytest.raises(ValueError, match="a WordLevel, which llama.cpp has none of; expected byte pair"):
        check_vocabulary_form(words())


REFUSED = [
    ("qwen3", {"tie_word_embeddings": False}, ["mlp"], False, {}, "no qwen3 with blocks of different sizes"),
    ("qwen3", {}, ["mlp"], True, {}, "no qwen3 with the bias .*down_proj.bias; expected compensation=none"),
    ("gemma", {}, ["mlp"], False, {}, "no gemma with blocks of different .*expected .*cfsp-export padded"),
    ("mistral", {"sliding_window": 8}, ["mlp"], False, {}, "sliding_window=8 tokens, and llama.cpp"),
    ("llama", {"hidden_act": "gelu"}, ["mlp"], False, {}, "hidden_act=gelu; llama.cpp computes silu"),
    ("llama", {"hidden_size": 72}, ["mlp"], False, {"type": "q8_0"}, "residual width 72 .*round_to=32"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        ["mlp"],
        False,
        {},
        "has rope_type=yarn; expected one of default, linear, llama3",
    ),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("family", "config", "kinds", "fill", "options", "error"), REFUSED)
def test_what_llama_cpp_cannot_express_is_refused(
    family, config, kinds, fill, options, error, tokenizer, tmp_path
):
    model = build(family, **config)
    plan = pruned(model, kinds, fill)
    with pytest.raises(ValueError, match=error):
        exported(tmp_path, model, tokenizer, plan, **options)
    assert not (tmp_path / "out.gguf").exists()


def test_a_family_without_a_writer_names_what_works(tmp_path):
    from families import make, words

    with pytest.raises(
        ValueError, match="a gpt2 has no writer of GGUF here; .*padded and llama.cpp's convert"
    ):
        exported(tmp_path, make("gpt2"), words(), cfsp.PrunePlan(()))


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_a_refused_model_goes_by_way_of_padding(family, tokenizer, tmp_path):
    model = build(family, tie_word_embeddings=family == "gemma")
    plan = pruned(model, ["mlp", "attention"])
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    Padded().export(tmp_path / "m", tmp_path / "padded")
    GGUF(type="f32").export(tmp_path / "padded", tmp_path / "out.gguf")
    with Engine(tmp_path / "out.gguf") as engine:
        assert differences(model, engine, [*range(5, 60)])[0] < 0.02


def test_the_file_carries_its_card_and_no_family_in_its_name(tokenizer, tmp_path, capsys):
    from gguf import GGUFReader

    model = build("llama")
    cfsp.save(tmp_path / "phi3-small", model, tokenizer, pruned(model, ["mlp"]))
    (tmp_path / "phi3-small" / "README.md").write_text("---\nlicense: mit\n---\n\nA card.\n")
    main(["gguf", str(tmp_path / "phi3-small"), str(tmp_path / "a.gguf"), "--type", "q8_0"])
    fields = GGUFReader(tmp_path / "a.gguf").fields
    assert fields["general.name"].contents() == "pruned"
    assert fields["general.license"].contents() == "mit"
    assert "A card." in fields["cfsp.card"].contents()
    assert "cfsp-export gguf --type q8_0" in fields["cfsp.card"].contents()
    assert capsys.readouterr().out == f"{tmp_path}/a.gguf\n"
    with pytest.raises(SystemExit):
        main(["gguf", str(tmp_path / "phi3-small"), str(tmp_path / "a.gguf")])
    assert "a.gguf exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gguf", str(tmp_path / "phi3-small"), str(tmp_path / "b.gguf"), "--type", "q4"])
    assert "type='q4': expected f32, f16, bf16, q8_0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("smallest-t", "smallest-t"),
        ("my_test.2", "my_test.2"),
        ("adopted", "adopted"),
        ("Phi-3.5-small", "pruned"),
        ("tinyphi3x", "pruned"),
        ("T5-small", "pruned"),
        ("Llama-3.2-half", "pruned"),
        ("gpt-neox_30", "pruned"),
        ("my Qwen2.5", "pruned"),
    ],
)
def test_only_names_of_families_are_replaced(folder, name):
    assert plain_name(folder) == name


@pytest.mark.parametrize("kind", ["q4_k_m", "Q4_K", "iq4_nl", "q5_0"])
def test_types_of_llama_cpps_own_tool_are_refused_with_the_command(kind):
    error = f"expected f32.*; {kind.lower()} comes of .*SMALLER.gguf {kind.upper()}$"
    with pytest.raises(ValueError, match=error):
        GGUF(type=kind)


def test_a_type_may_be_in_capitals():
    assert GGUF(type="Q8_0") == GGUF(type="q8_0")


def test_widths_beside_q8_0_are_multiples_of_its_blocks():
    with pytest.raises(ValueError, match="multiple=8 beside type=q8_0: expected a multiple of 32"):
        GGUF(type="q8_0", multiple=8)
