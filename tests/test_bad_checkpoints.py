"""What is wrong with a checkpoint, or the place for one, is said; nothing is lost or half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import make, words
from pruned_models import cut, emptied
from transformers import AutoModelForCausalLM

import cfsp
from cfsp.checkpoints.save import check_target
from cfsp.storage.atomic import whole_folder


@pytest.fixture(scope="session")
def tokenizer():
    return words()


def saved(tmp_path, tokenizer, family="llama") -> Path:
    model, plan = cut(family, ["mlp", "attention"], fill=True)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    return tmp_path / "m"


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tampered_file_is_found(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    change_weights(folder, lambda weights: weights["lm_head.weight"].mul_(1.5))
    with pytest.raises(ValueError, match="model.safetensors is not as it was saved; if that is intended"):
        cfsp.load(folder)
    (folder / "SHA256SUMS").unlink()
    cfsp.load(folder)


def test_a_truncated_or_missing_file_is_found(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not as it was saved"):
        cfsp.load(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        cfsp.load(folder)
    with pytest.raises(Exception, match="(?i)incomplete|header|invalid"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        cfsp.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.layers.0.mlp.down_proj.bias"), "1 missing keys .*down_proj.bias"),
        (lambda weights: weights.update(extra=torch.ones(2)), "1 unexpected keys in the checkpoint: extra"),
    ],
)
def test_a_weight_too_few_or_too_many_is_an_error_without_cfsp_too(change, message, tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        cfsp.load(folder)


def test_a_weight_of_another_shape_is_an_error(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.ones(60, 32)}))
    with pytest.raises(RuntimeError, match="size mismatch|mismatch"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_a_plain_checkpoint_with_weights_too_many_is_an_error(tmp_path, tokenizer):
    make("llama").save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    bias = {"model.layers.0.mlp.down_proj.bias": torch.ones(32)}
    change_weights(tmp_path / "m", lambda weights: weights.update(bias))
    with pytest.raises(ValueError, match="1 weights belong to no module, such as .*down_proj.bias"):
        cfsp.load(tmp_path / "m")


def test_a_folder_that_holds_something_is_left_alone(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, plan = cut("llama", ["mlp"])
    with pytest.raises(ValueError, match="holds a model already; expected an empty folder, or over"):
        cfsp.save(folder, model, tokenizer, plan)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    cfsp.save(folder, model, tokenizer, plan, overwrite=True)
    assert cfsp.PrunePlan.load(folder).edits[0].keep == plan.edits[0].keep
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_is_no_model_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(ValueError, match="holds something that is no model"):
        check_target(tmp_path / "photos", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        check_target(tmp_path / "file", overwrite=True)


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from families import make, words
from pruned_models import cut
from transformers import AutoTokenizer
import cfsp
from cfsp.checkpoints.load import REFERENCE
model, plan = cut("llama", ["mlp"])
tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    cfsp.save(sys.argv[1], model, tokenizer, plan, overwrite=True)
except OSError as error:
    print("refused", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file as Linux does")
@pytest.mark.parametrize("limit", [10_000, 100_000])  # the weights do not fit, or the tokenizer does not
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_half_written(limit, there, tmp_path, tokenizer):
    if there:
        saved(tmp_path, tokenizer)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*")}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "m"), str(Path(__file__).parent), str(limit)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"] * there


def test_an_interrupted_save_keeps_what_was_there(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("old")

    def save_and_be_stopped():
        with whole_folder(tmp_path / "m") as part:
            (part / "config.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_be_stopped()
    assert (tmp_path / "m" / "config.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_config_that_cannot_say_it_is_an_error_before_anything_is_written(tmp_path, tokenizer):
    model = make("llama")
    site = cfsp.find_sites(model, ["hidden"])[0]
    plan = cfsp.PrunePlan((cfsp.Cut(site.name, site.units, tuple(range(9))),))
    cfsp.apply(plan, model)
    with pytest.raises(ValueError, match="LlamaConfig cannot say what this model is: .*not a multiple of"):
        cfsp.save(tmp_path / "m", model, tokenizer, plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is broken"),
        ("[]", "is broken"),
        ('{"format": 0, "edits": []}', "format 0; this version of cfsp reads 2"),
        ('{"format": 2, "edits": [{"site": "a"}], "notes": {}}', "is broken"),
        (
            '{"format": 2, "notes": {}, "edits": [{"site": "a", "units": 2, "keep": [0], "tensors": ["x"]}]}',
            "broken",
        ),
    ],
)
def test_plans_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        cfsp.PrunePlan.load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt", "phi3", "gpt_neox"])
def test_without_remote_code_an_emptied_model_is_refused_not_filled_at_random(family, tokenizer, tmp_path):
    model, plan = emptied(family)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=False)


def test_a_checkpoint_is_loaded_with_its_own_head_only(tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="is of a LlamaForCausalLM, which is no sequence_classification"):
        cfsp.load(folder, head="sequence_classification")


@pytest.mark.parametrize("change", [{"stock": "Foo"}, {"linears": None}, {"blocks": "nowhere"}])
def test_a_broken_description_is_an_error(change, tmp_path, tokenizer):
    folder = saved(tmp_path, tokenizer)
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["pruned"] |= change
    if change == {"linears": None}:
        del config["pruned"]["linears"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        cfsp.load(folder)


def test_classes_that_cannot_be_saved(tmp_path, tokenizer):
    model = make("llama")
    with pytest.raises(ValueError, match="a LlamaModel cannot be saved; expected .* merge_and_unload"):
        cfsp.save(tmp_path / "m", model.model, tokenizer, cfsp.PrunePlan(()))


def test_a_generation_config_that_transformers_would_not_write(tmp_path, tokenizer):
    model, plan = cut("llama", ["mlp"])
    model.generation_config.temperature = 0.7
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    assert not model.generation_config.do_sample
    again, _ = cfsp.load(tmp_path / "m")
    assert again.generation_config.temperature == 0.7


def test_relative_paths_links_and_places_that_cannot_be_written(tmp_path, tokenizer, monkeypatch):
    model, plan = cut("llama", ["mlp"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    cfsp.save(".", model, tokenizer, plan)
    assert (tmp_path / "empty" / "config.json").is_file()
    cfsp.save(tmp_path / "link", model, tokenizer, plan, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"]
    with pytest.raises(ValueError, match="expected a folder that can be written"):
        check_target(Path("/proc/nothing/m"), overwrite=False)


def test_a_layer_without_inputs_is_trained_by_peft_or_left_alone(tmp_path, tokenizer, tokens):
    peft = pytest.importorskip("peft")
    model, _ = emptied("llama")
    lora = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj", "o_proj"])
    tuned = peft.get_peft_model(model, lora)
    tuned(**tokens, labels=tokens["input_ids"]).loss.backward()


def test_one_folder_for_a_sweep_is_refused(tiny_overrides, tmp_path, monkeypatch, capsys):
    from cfsp.cli.main import main

    arguments = ["cfsp", "-m", *tiny_overrides(), f"results={tmp_path}", "save=one", "sparsity=0.2,0.4"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.count("is one folder for all jobs of a sweep; expected save=true") == 2
