"""A saved folder differs from the one that came in by what was cut, and by nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import make, words
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

import cfsp
from cfsp.checkpoints.describe import check_saving
from cfsp.checkpoints.save import save
from cfsp.running.build import CONF
from cfsp.running.run import run

SIZES = {"intermediate_size", "ffn_dim", "n_inner"}
OURS = {"per_layer_config", "pruned", "auto_map", "architectures", "allow_global_per_layer_attribute_access"}
ODD = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7, "my_rule": [1, 2]}


def published(folder: Path, family: str) -> Path:
    """A model's folder with values and files that transformers would not write of itself."""
    make(family).save_pretrained(folder)
    words().save_pretrained(folder)
    change(folder / "config.json", my_key={"a": 1}, use_cache=True)
    change(folder / "generation_config.json", **ODD)
    change(folder / "tokenizer_config.json", model_max_length=33, my_note="x")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} !")
    (folder / "LICENSE").write_text("as is")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "optimizer.pt").write_text("of a training")
    return folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(read(path) | values))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def differences(dense: Path, pruned: Path, name: str) -> set[str]:
    one, other = read(dense / name), read(pruned / name)
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "phi3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("uniform", [True, False])
def test_every_file_is_as_it_came(family, uniform, tmp_path):
    dense = published(tmp_path / "dense", family)
    model, _ = cfsp.load(dense)
    sites = cfsp.find_sites(model, ["mlp"])
    keeps = [range(8), range(8 if uniform else 12)]
    cuts = [cfsp.Cut(site.name, site.units, tuple(keep)) for site, keep in zip(sites, keeps, strict=True)]
    plan = cfsp.PrunePlan(tuple(cuts))
    cfsp.apply(plan, model)
    save(tmp_path / "pruned", model, None, plan, source=dense)
    pruned = tmp_path / "pruned"
    assert differences(dense, pruned, "config.json") <= SIZES | (set() if uniform else OURS)
    assert differences(dense, pruned, "generation_config.json") == set()
    for path in dense.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors", "optimizer.pt"):
            assert (pruned / path.name).read_bytes() == path.read_bytes()
    ours = {"plan.json", "SHA256SUMS"} | (set() if uniform else {"modeling_pruned.py"})
    assert {path.name for path in pruned.iterdir()} - {path.name for path in dense.iterdir()} == ours
    assert not (pruned / "optimizer.pt").exists()


def test_a_run_with_training_saves_what_came_in(tmp_path, tiny_checkpoint, tiny_overrides):
    dense = tmp_path / "dense"
    shutil.copytree(tiny_checkpoint, dense)
    change(dense / "generation_config.json", **ODD)
    (dense / "NOTICE").write_text("by us")
    overrides = [
        *tiny_overrides("evaluation=[]"),
        f"model.path={dense}",
        "evaluation=[]",
        "allocator=uniform",
        "recovery=lora",
        "recovery/data=text",
        "recovery.data.sources.text.text.paths=${calibration.text.paths}",
        "recovery.data.window=16",
        "recovery.training.max_steps=2",
        f"save={tmp_path}/pruned",
        f"results={tmp_path}/results",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("config", overrides))
    pruned = tmp_path / "pruned"
    assert differences(dense, pruned, "config.json") == {"intermediate_size"}
    assert differences(dense, pruned, "generation_config.json") == set()
    for name in ("tokenizer.json", "tokenizer_config.json", "NOTICE"):
        assert (pruned / name).read_bytes() == (dense / name).read_bytes()


def test_a_pruned_model_decodes_by_the_rule_of_its_dense_one(tmp_path):
    model, tokenizer = cfsp.load(published(tmp_path / "dense", "llama"))
    plan = cfsp.plan(
        model, [{"input_ids": torch.arange(2, 14)[None]}], criterion="magnitude", allocator="uniform"
    )
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "pruned", model, tokenizer, plan)
    assert (tmp_path / "pruned" / "LICENSE").read_text() == "as is"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    ids = torch.arange(3, 11)[None]
    assert (
        len({tuple(again.generate(ids, pad_token_id=0, eos_token_id=None)[0].tolist()) for _ in range(4)})
        == 1
    )


def test_a_tokenizer_that_was_changed_in_memory_is_saved_as_it_is(tmp_path):
    model, tokenizer = cfsp.load(published(tmp_path / "dense", "llama"))
    tokenizer.pad_token, tokenizer.chat_template = "w9", "{{ 1 }}"
    cfsp.save(tmp_path / "same", model, tokenizer, cfsp.PrunePlan(()))
    _, again = cfsp.load(tmp_path / "same")
    assert (again.pad_token, again.chat_template) == ("w9", "{{ 1 }}")


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "phi"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("uniform", [True, False])
def test_tying_is_saved_as_the_weights_are_whatever_the_flag_says(family, tied, uniform, tmp_path):
    model = make(family)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    own = torch.nn.Parameter(embedding.weight.detach().clone() + 1)
    head.weight = embedding.weight if tied else own
    model.config.tie_word_embeddings = not tied
    sites = cfsp.find_sites(model, ["mlp"])
    cuts = [cfsp.Cut(site.name, site.units, tuple(range(8 + site.block * (not uniform)))) for site in sites]
    plan = cfsp.PrunePlan(tuple(cuts))
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, words(), plan)
    assert read(tmp_path / "m" / "config.json")["tie_word_embeddings"] is tied
    again, _ = cfsp.load(tmp_path / "m")
    assert torch.equal(again.get_output_embeddings().weight, head.weight)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is tied


def other_number(model):
    norms = [module for module in model.modules() if {"eps", "variance_epsilon"} & vars(module).keys()]
    setattr(norms[-1], "eps" if hasattr(norms[-1], "eps") else "variance_epsilon", 0.5)


def more_weights(model):
    model.base_model.register_parameter("more", torch.nn.Parameter(torch.ones(2)))


def other_shape(model):
    model.set_input_embeddings(torch.nn.Embedding(7, model.get_input_embeddings().embedding_dim))


def refusal(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "gemma2", "bert"])
@pytest.mark.parametrize("change", [None, other_number, more_weights, other_shape])
@pytest.mark.parametrize("uniform", [True, False])
def test_what_cannot_be_saved_once_it_is_pruned_is_refused_before(family, change, uniform, tmp_path):
    model = make(family)
    if change is not None:
        change(model)
    sites = cfsp.find_sites(model, ["mlp", "attention"])
    before = refusal(lambda: check_saving(model, sites, 1))
    keeps = [range(max(1, site.units - 1 - site.block * (not uniform))) for site in sites]
    cuts = [cfsp.Cut(site.name, site.units, tuple(keep)) for site, keep in zip(sites, keeps, strict=True)]
    plan = cfsp.PrunePlan(tuple(cuts))
    cfsp.apply(plan, model)
    after = refusal(lambda: cfsp.save(tmp_path / "m", model, words(), plan))
    assert [before is None, after is None] == [change is None] * 2, (before, after)


def unsayable(**options):
    """Load a model that its config does not describe."""
    model, tokenizer = cfsp.load(**options)
    other_number(model)
    return model, tokenizer


@pytest.mark.parametrize("allocator", ["uniform", "cfsp"])
def test_what_cannot_be_saved_is_said_before_anything_is_measured(
    allocator, tmp_path, tiny_overrides, monkeypatch
):
    monkeypatch.setattr("cfsp.running.stages.measure", lambda *_, **__: pytest.fail("measured"))
    overrides = [*tiny_overrides(), f"results={tmp_path}", "save=true", f"allocator={allocator}"]
    overrides.append("model._target_=test_saved_folder.unsayable")
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(ValueError, match="cannot say what this model is: model.norm.variance_epsilon"),
    ):
        run(compose("config", overrides))


@pytest.mark.parametrize(("allocator", "told"), [("cfsp", True), ("uniform", False)])
def test_the_command_says_how_an_uneven_model_loads(cfsp, allocator, told):
    code, _, err = cfsp("evaluation=[]", "save=small", "sparsity=0.25", f"allocator={allocator}")
    assert code == 0
    assert err[-1].startswith("cfsp: the model is in small")
    assert ("trust_remote_code=True" in err[-1]) == told
    assert len({path.stat().st_mode for path in Path("small").iterdir()}) == 1  # also of the weights
