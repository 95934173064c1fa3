"""GGUF: what llama.cpp cannot express is refused; what a file says of itself. No engine is needed."""

import ctypes
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import transformers as t

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'cfsp[gguf]'")

from gguf_models import PIECES, SPACES, build, exported, pieces, pruned, trained
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import cfsp
from cfsp.cli.export import main
from cfsp.exports.gguf_file import GGUF, plain_name
from cfsp.exports.gguf_quantiser import find_quantiser
from cfsp.exports.vocabulary import check_vocabulary_form


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


@pytest.fixture
def no_quantiser(monkeypatch, tmp_path):
    """A machine without llama.cpp's quantiser."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


@pytest.mark.parametrize("kind", ["q4_k_m", "Q4_K", "iq4_nl", "q5_0"])
def test_types_of_llama_cpps_own_quantiser_are_refused_without_it(kind, no_quantiser):
    error = f"expected f32.*, or {kind.lower()} where llama.cpp's llama-quantize is on PATH, or llama-cpp"
    with pytest.raises(ValueError, match=error):
        GGUF(type=kind)


RECORDING = """#!/bin/sh
echo "$@" > {notes}
{work}
"""


def put_program(tmp_path, work):
    """A program that notes its arguments and does some work in place of quantising."""
    program, notes = tmp_path / "bin" / "llama-quantize", tmp_path / "arguments"
    program.parent.mkdir()
    program.write_text(RECORDING.format(notes=notes, work=work))
    program.chmod(0o755)
    return notes


def test_other_types_are_made_by_llama_cpps_program(no_quantiser, tokenizer, tmp_path):
    from gguf import GGUFReader

    notes = put_program(tmp_path, '/bin/cp "$1" "$2"')
    model = build("llama")
    path = exported(tmp_path, model, tokenizer, pruned(model, ["mlp"]), type="Q4_K_M", multiple=256)
    source, target, kind = notes.read_text().split()
    assert kind == "Q4_K_M"
    assert not Path(source).exists()
    assert Path(target).parent == path.parent
    made = GGUFReader(path)
    assert "cfsp-export gguf --type q4_k_m" in made.fields["cfsp.card"].contents()
    assert {one.tensor_type.name for one in made.tensors} == {"F16", "F32"}
    assert GGUF(type="q4_k_m", multiple=256).origin(path) is not None
    assert not [*tmp_path.glob(".out*")]


def test_a_quantiser_that_fails_is_told_and_leaves_nothing(no_quantiser, tokenizer, tmp_path):
    put_program(tmp_path, "echo 'tensor cols 96 x 64 are not divisible' >&2; exit 3")
    model = build("llama")
    plan = pruned(model, ["mlp"])
    with pytest.raises(ValueError, match="llama-quantize ended with code 3; its last line: tensor cols 96"):
        exported(tmp_path, model, tokenizer, plan, type="q4_k_m")
    assert not [*tmp_path.glob("*out*")]


def test_other_types_are_made_by_llama_cpps_library(no_quantiser, tokenizer, tmp_path, monkeypatch):
    class Options(ctypes.Structure):
        _fields_ = (("ftype", ctypes.c_int),)

    asked = []

    def quantise(source, target, options):
        asked.append(options._obj.ftype)
        shutil.copyfile(source.decode(), target.decode())
        return 0

    library = ModuleType("llama_cpp")
    library.__spec__ = ModuleSpec("llama_cpp", None)
    names = {"LLAMA_FTYPE_MOSTLY_Q4_K_M": 15, "llama_model_quantize_default_params": Options}
    for name, value in (names | {"llama_model_quantize": quantise}).items():
        setattr(library, name, value)
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    model = build("llama")
    path = exported(tmp_path, model, tokenizer, pruned(model, ["mlp"]), type="q4_k_m")
    assert path.is_file()
    assert asked == [15]
    with pytest.raises(ValueError, match="type='q4_k_zz': llama_cpp has no such type; expected .*q4_k_m"):
        GGUF(type="q4_k_zz").export(tmp_path / "m", tmp_path / "other.gguf")


@pytest.mark.engines
def test_llama_cpps_own_program_makes_k_types(tokenizer, tmp_path):
    from gguf import GGUFReader

    if find_quantiser() is None:
        pytest.skip("neither llama-quantize nor llama-cpp-python is installed")
    model = build("llama", hidden_size=256)
    path = exported(tmp_path, model, tokenizer, pruned(model, ["mlp"]), type="q4_k_m", multiple=256)
    assert {one.tensor_type.name for one in GGUFReader(path).tensors} >= {"Q4_K", "F32"}


def test_a_type_may_be_in_capitals():
    assert GGUF(type="Q8_0") == GGUF(type="q8_0")


def test_widths_beside_q8_0_are_multiples_of_its_blocks():
    with pytest.raises(ValueError, match="multiple=8 beside type=q8_0: expected a multiple of 32"):
        GGUF(type="q8_0", multiple=8)
