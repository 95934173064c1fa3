"""Exports of a run: what is asked for is there, of this model and by these options, or is refused."""

import json
import shutil

import pytest
from gguf_models import build
from transformers import AutoModelForCausalLM

import cfsp
from cfsp.schedules.base import Schedule


def test_a_run_exports_what_it_saves_and_a_repetition_what_is_missing(cli, tmp_path):
    options = ("evaluation=[]", "sparsity=0.3", f"save={tmp_path}/small", "export=[padded]")
    path = cli(*options)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small-padded", trust_remote_code=False)
    before = path.read_text(), (tmp_path / "small-padded" / "model.safetensors").stat().st_mtime_ns
    cli(*options)
    after = path.read_text(), (tmp_path / "small-padded" / "model.safetensors").stat().st_mtime_ns
    assert after == before
    shutil.rmtree(tmp_path / "small-padded")
    cli(*options)
    assert (tmp_path / "small-padded" / "SHA256SUMS").is_file()
    assert path.read_text() == before[0]


def test_a_repetition_with_other_options_writes_the_export_again(cli, tmp_path):
    options = ("evaluation=[]", "sparsity=0.3", f"save={tmp_path}/small", "export=[padded,gguf]")
    record = cli(*options).read_text()
    folder, file = tmp_path / "small-padded", tmp_path / "small-f16.gguf"
    before = file.stat().st_mtime_ns
    path = cli(*options, "export.padded.multiple=7")
    assert json.loads((folder / "config.json").read_text())["intermediate_size"] % 7 == 0
    assert (path.read_text(), file.stat().st_mtime_ns) == (record, before)
    cli(*options, "export.padded.multiple=7", "export.gguf.multiple=64")
    assert file.stat().st_mtime_ns != before
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="small-padded exists already; expected a new path, or overwrite"):
        cli(*options)
    assert [one.name for one in folder.iterdir()] == ["notes.txt"]


def test_an_export_that_fails_does_not_stop_the_next_one(cli, tmp_path):
    options = ("evaluation=[]", "sparsity=0.3", f"save={tmp_path}/small")
    cli(*options)
    (tmp_path / "small-f16.gguf").mkdir()
    with pytest.raises(ValueError, match="small-f16.gguf is a folder; expected the path of a file"):
        cli(*options, "export=[gguf,padded]")
    assert (tmp_path / "small-padded" / "config.json").is_file()
    (tmp_path / "small-decilm").write_text("mine")
    both = "is a folder; expected .*; .*small-decilm exists already"
    with pytest.raises(ValueError, match=both):
        cli(*options, "export=[gguf,decilm]")


@pytest.mark.parametrize(
    ("choices", "refused"),
    [
        (["allocator=global_rank"], True),
        (["allocator=uniform", "allocator.protect=[0]"], True),
        (["allocator=uniform"], False),
        (["allocator=global_rank", "sites=[block]", "criterion=chance", "sparsity=0.4"], False),
    ],
)
def test_blocks_that_an_engine_cannot_have_are_refused_before_pruning(
    choices, refused, cli, tmp_path, tokenizer, monkeypatch
):
    dense = build("qwen3", tie_word_embeddings=False)
    cfsp.save(tmp_path / "dense", dense, tokenizer, cfsp.PrunePlan(()))
    words = (
        "evaluation=[]",
        f"model.path={tmp_path}/dense",
        f"save={tmp_path}/small",
        "export=[gguf,padded]",
    )
    if refused:
        monkeypatch.setattr(Schedule, "make", None)
        with pytest.raises(ValueError, match="no qwen3 with blocks of different sizes .*allocator=uniform"):
            cli(*words, "criterion=chance", *choices)
        return
    cli(*words, "criterion=chance", *choices)
    assert (tmp_path / "small-f16.gguf").is_file()


def test_a_run_that_saves_nothing_exports_nothing(cli):
    with pytest.raises(ValueError, match=r"export=\[padded\] exports what is saved; expected save=true"):
        cli("evaluation=[]", "export=[padded]")


def test_a_routing_schedule_exports_nothing_and_says_so_at_once(cli, tmp_path):
    words = (
        "schedule=routed_once",
        "schedule/maker=teal",
        "sites=[mlp]",
        "sparsity=0",
        f"save={tmp_path}/small",
    )
    with pytest.raises(ValueError, match=r"these MLPs are routed, .*; expected export=\[\]"):
        cli("evaluation=[]", *words, "export=[padded]")
    assert not (tmp_path / "small").exists()
