"""Exports: what an engine loads computes what the pruned model computes."""

import json
import weakref
from functools import partial

import pytest
import torch
from families import FAMILIES, make, most_distinct, words
from full_disks import BIG, files_of_at_most
from plans import kind_sets, logits
from pruned_models import auto_class, cut, emptied
from routed_models import plan_for, routed
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from two_stacks import make_pair, pair_tokenizer

import cfsp
from cfsp.checkpoints.save import check_model
from cfsp.cli.export import main
from cfsp.exports.base import Saved
from cfsp.exports.decilm import DeciLM
from cfsp.exports.gguf_file import GGUF
from cfsp.exports.padded import Padded
from cfsp.exports.padding import pad_axis
from cfsp.exports.streamed import StreamedWeight, write_streamed
from cfsp.model.shapes import BlockShape

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def refused(family, kinds):
    """Whether the family's config has no switch for the biases that a fill leaves."""
    takes = {"mlp": {"llama", "granite", "smollm3", "starcoder2"}}
    takes["attention"] = takes["mlp"] | {"qwen3", "gemma", "gemma2", "gemma3_text"}
    has = {"phi", "bloom", "falcon", "opt", "gpt2", "gpt_neox", "bert", "roberta", "llama_mha_biased"}
    return family not in has and any(family not in takes[kind] for kind in kinds)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", most_distinct(FAMILIES))
def test_a_padded_model_is_a_plain_one_that_computes_the_same(family, tmp_path, tokens):
    for number, kinds in enumerate(kind_sets(make(family))):
        model, plan = cut(family, kinds)
        folder = tmp_path / str(number)
        cfsp.save(folder / "pruned", model, words(), plan)
        Padded(multiple=8).export(folder / "pruned", folder / "out")
        assert "auto_map" not in json.loads((folder / "out" / "config.json").read_text())
        assert not (folder / "out" / "modeling_pruned.py").exists()
        again = auto_class(family).from_pretrained(folder / "out", trust_remote_code=False)
        torch.testing.assert_close(logits(again, tokens), logits(model, tokens), **EXACT)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", most_distinct(FAMILIES))
def test_biases_that_pruning_added_are_expressed_or_refused(family, tmp_path, tokens):
    model = make(family)
    kinds = [kind for kind in ("mlp", "attention") if kind in kind_sets(model)[-1]]
    for maker in (lambda: cut(family, kinds, fill=True), lambda: emptied(family)):
        model, plan = maker()
        folder = tmp_path / maker.__code__.co_names[0]
        cfsp.save(folder / "pruned", model, words(), plan)
        touched = {edit.kind for edit in plan.edits}
        if refused(family, touched):
            with pytest.raises(ValueError, match=r"\.bias was added by pruning.*expected compensation=none"):
                Padded().export(folder / "pruned", folder / "out")
            assert not (folder / "out").exists()
            continue
        Padded().export(folder / "pruned", folder / "out")
        again = auto_class(family).from_pretrained(folder / "out", trust_remote_code=False)
        torch.testing.assert_close(logits(again, tokens), logits(model, tokens), **EXACT)


@pytest.fixture
def pruned(cli, tmp_path):
    """A folder that a run saved, whose blocks differ."""
    cli("evaluation=[]", "sparsity=0.3", f"save={tmp_path}/small")
    return tmp_path / "small"


def test_the_card_travels_and_says_what_was_done(pruned, tmp_path, capsys):
    main(["padded", str(pruned), str(tmp_path / "out"), "--multiple", "16"])
    assert capsys.readouterr().out == f"{tmp_path}/out\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith((pruned / "README.md").read_text().partition("## Load")[0])
    assert "trust_remote_code" not in card
    assert "trust_remote_code" in (pruned / "README.md").read_text()
    assert "## Exported" in card
    for name in ("record.json", "plan.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pruned / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] % 16 == 0
    check_model(tmp_path / "out")


EXAMPLES = {
    "padded": 'AutoModelForCausalLM.from_pretrained("FOLDER")',
    "decilm": "python -m vllm.entrypoints.openai.api_server --model FOLDER --trust-remote-code",
    "gguf": "llama-server --model FILE.gguf",
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_card_says_how_the_export_loads(form, pruned, tmp_path):
    main([form, str(pruned), str(tmp_path / "out")])
    card = card_of(tmp_path / "out")
    load = card.partition("## Load")[2].partition("## ")[0]
    assert EXAMPLES[form] in load
    assert card.count("```") == (pruned / "README.md").read_text().count("```")
    assert ("from_pretrained" in card) == (form == "padded")
    (pruned / "README.md").write_text("# Mine\n")
    main([form, str(pruned), str(tmp_path / "again")])
    assert EXAMPLES[form] in card_of(tmp_path / "again").partition("## Exported")[2]


def card_of(export):
    if export.is_dir():
        return (export / "README.md").read_text()
    from gguf import GGUFReader

    return GGUFReader(export).fields["cfsp.card"].contents()


def test_the_card_speaks_of_zeros_where_there_are_some(tmp_path):
    for number, kinds in enumerate((["mlp"], ["mlp", "attention"])):
        model, plan = cut("llama", kinds)
        cfsp.save(tmp_path / f"{number}", model, words(), plan)
        DeciLM().export(tmp_path / f"{number}", tmp_path / f"{number}-decilm")
        assert ("zeros" in card_of(tmp_path / f"{number}-decilm")) == ("attention" in kinds)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["padded", "nowhere", "out"], "nowhere holds no model; expected a folder that save=FOLDER wrote"),
        (["padded", "small", "full"], "full holds something that is no model; expected an empty folder"),
        (["padded", "small", "small"], "small exists already; expected a new path, or overwrite"),
        (["padded", "small", "small", "--overwrite"], "small holds the model that is exported; expected"),
        (["padded", "small", "file", "--overwrite"], "file is a file; expected a folder"),
        (["padded", "small", "out", "--multiple", "0"], "multiple=0: expected a whole number of at least 1"),
        (["padded", "small", "out", "--multiple", "x"], "multiple='x': expected a whole number"),
        (["padded", "small", "file/out"], "cannot be written; expected a path in a folder that can be"),
    ],
)
def test_what_cannot_be_exported_is_one_line(pruned, tmp_path, monkeypatch, capsys, given, error):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if "full" in given:
        given = [*given, "--overwrite"]
    with pytest.raises(SystemExit, match="1"):
        main(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cfsp-export: error: ")
    assert error in line
    assert sorted(tmp_path.rglob("*")) == before


EXPORTERS = [Padded(), DeciLM(), GGUF()]


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda one: type(one).__name__)
def test_what_no_export_expresses_is_refused_with_what_works(exporter, tmp_path):
    model = routed()
    cfsp.save(tmp_path / "routed", model, words(), plan_for(model))
    with pytest.raises(ValueError, match="its MLPs are routed.*; expected a model whose schedule cuts"):
        exporter.export(tmp_path / "routed", tmp_path / "out")
    for name in ("t5", "bart"):
        cfsp.save(tmp_path / name, make_pair(name), pair_tokenizer(), cfsp.PrunePlan(()))
        with pytest.raises(ValueError, match="two stacks of blocks.*; expected .*, or allocator=uniform"):
            exporter.export(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exporter", EXPORTERS[1:], ids=lambda one: type(one).__name__)
def test_a_model_of_labels_is_no_model_of_the_next_token(exporter, tmp_path):
    config = make("llama").config
    config.num_labels = 3
    model = LlamaForSequenceClassification(config).eval()
    cfsp.save(tmp_path / "m", model, words(), cfsp.PrunePlan(()))
    with pytest.raises(ValueError, match="a LlamaForSequenceClassification predicts no next token.*padded"):
        exporter.export(tmp_path / "m", tmp_path / "out")


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda one: type(one).__name__)
def test_a_full_disk_and_a_folder_without_a_model_leave_nothing(exporter, tmp_path, tokenizer):
    model, _ = cfsp.load("reference")
    cfsp.save(tmp_path / "m", model, tokenizer, cfsp.PrunePlan(()))
    with files_of_at_most(4_000_000), pytest.raises(OSError, match=BIG.partition(" (")[0]):
        exporter.export(tmp_path / "m", tmp_path / "there" / "out")
    assert [*(tmp_path / "there").rglob("*[!k]")] == []  # a lock may stay
    with pytest.raises(ValueError, match="there holds no model; expected a folder that save=FOLDER wrote"):
        exporter.export(tmp_path / "there", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda one: type(one).__name__)
def test_an_export_that_is_there_is_replaced_only_if_asked(exporter, tmp_path, tokenizer):
    model, _ = cfsp.load("reference")
    cfsp.save(tmp_path / "m", model, tokenizer, cfsp.PrunePlan(()))
    exporter.export(tmp_path / "m", tmp_path / "out")
    with pytest.raises(ValueError, match="out exists already; expected a new path, or overwrite"):
        exporter.export(tmp_path / "m", tmp_path / "out")
    before = (tmp_path / "out").stat().st_ino
    exporter.export(tmp_path / "m", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").stat().st_ino != before


def test_adapters_that_are_kept_apart_are_not_lost(pruned, tmp_path):
    (pruned / "adapters").mkdir()
    with pytest.raises(ValueError, match="keeps its adapters apart.*parameters.merge=true"):
        Padded().export(pruned, tmp_path / "out")


@pytest.mark.parametrize("exporter", [Padded(), DeciLM()], ids=lambda one: type(one).__name__)
def test_a_model_in_memory_is_exported_as_its_folder_is(exporter, tmp_path, tokens):
    model, plan = cut("llama", ["mlp", "attention"])
    before = logits(model, tokens)
    cfsp.save(tmp_path / "m", model, words(), plan)
    exporter.export(tmp_path / "m", tmp_path / "of_a_folder")
    exporter.export_model(model, words(), tmp_path / "of_a_model", plan)
    of_a_folder, of_a_model = tmp_path / "of_a_folder", tmp_path / "of_a_model"
    assert {one.name for one in of_a_model.iterdir()} == {one.name for one in of_a_folder.iterdir()}
    for name in ("model.safetensors", "config.json", "plan.json", "tokenizer.json"):
        assert (of_a_model / name).read_bytes() == (of_a_folder / name).read_bytes()
    assert torch.equal(logits(model, tokens), before)
    with pytest.raises(ValueError, match="of_a_model exists already; expected a new path, or overwrite"):
        exporter.export_model(model, words(), of_a_model, plan)
    assert {one.name for one in tmp_path.glob("[!.]*")} == {"m", "of_a_folder", "of_a_model"}
    assert not [one for one in tmp_path.glob(".*") if one.is_dir()]


@pytest.mark.parametrize("exporter", [Padded(multiple=8), DeciLM()], ids=lambda one: type(one).__name__)
def test_no_two_weights_are_made_at_a_time(exporter, tmp_path, tokens, monkeypatch):
    """An export holds one weight beside the model's own, and leaves the model as it was."""
    alive, init = [], StreamedWeight.__init__

    def watching(self, name, shape, dtype, make):
        def watched():
            assert [one() for one in alive if one() is not None] == [], name
            weight = make()
            if weight.untyped_storage().data_ptr() not in own:
                alive.append(weakref.ref(weight))
            return weight

        init(self, name, shape, dtype, watched)

    model, plan = cut("llama", ["mlp", "attention"])
    cfsp.save(tmp_path / "m", model, words(), plan)
    saved = Saved.read(tmp_path / "m")
    own = {weight.untyped_storage().data_ptr() for weight in saved.model.state_dict().values()}
    before = logits(saved.model, tokens)
    monkeypatch.setattr(StreamedWeight, "__init__", watching)
    exporter.write(saved, tmp_path / "out")
    assert len(alive) > 1
    assert torch.equal(logits(saved.model, tokens), before)


def test_large_weights_are_in_several_files_that_transformers_reads(tmp_path, tokens):
    model = make("llama")
    weights = [
        StreamedWeight(name, tuple(one.shape), one.dtype, partial(torch.clone, one))
        for name, one in model.state_dict().items()
    ]
    write_streamed(tmp_path, weights, most="10KB")
    model.config.save_pretrained(tmp_path)
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 2
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, tokens), logits(model, tokens))


@pytest.mark.parametrize("dim", [0, 1])
def test_new_query_heads_stand_behind_those_of_their_group(dim):
    have, want = BlockShape(3, 4, 2), BlockShape(5, 9, 3)  # groups of two and of three heads of two channels
    weight = torch.arange(1.0, 9).unsqueeze(1 - dim)
    padded = pad_axis(weight, dim, ("q",), have, want, head_dim=2).flatten().tolist()
    assert padded == [1, 2, 3, 4, 0, 0, 5, 6, 7, 8, *[0] * 8]


def test_shapes_are_those_of_the_weights():
    model, plan = cut("llama", ["mlp", "attention"])
    kept = {edit.site: len(edit.keep) for edit in plan.edits}
    shapes = cfsp.Shapes.of(model)
    assert (shapes.hidden, shapes.vocabulary, shapes.head_dim, shapes.alike) == (32, 61, 6, False)
    for number, one in enumerate(shapes.blocks):
        groups = kept[f"model.layers.{number}.attention"]
        assert one == BlockShape(kept[f"model.layers.{number}.mlp"], 2 * groups, groups)
