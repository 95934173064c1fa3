"""Checkpoints: what is saved loads anywhere, bit for bit, or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, all_kinds, batches, kinds_of, make
from test_surgery import kind_sets, logits, ones_for, random_plan
from transformers import AutoModelForCausalLM, AutoTokenizer

import cfsp
from cfsp.checkpoints import check_target, whole_folder
from cfsp.layouts import places_of
from cfsp.loading import REFERENCE

SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(REFERENCE)


def cut(family, kinds, fill=False):
    """A pruned model and its plan."""
    model = make(family)
    if family.startswith("llama") and "hidden" in kinds:
        kinds = [kind for kind in kinds if kind != "hidden"]  # its config wants a multiple of its heads
    sites = cfsp.find_sites(model, kinds or ["mlp"])
    fills = {site.name: ones_for([site])[site.name] if fill else None for site in sites}
    plan = random_plan(sites, fills=fills)
    cfsp.apply(plan, model)
    return model, plan


def emptied(family):
    """A model whose first block has lost its MLP and, where that can be, its attention."""
    model = make(family)
    kinds = [kind for kind, place in places_of(model).items() if kind == "mlp" or place.whole]
    sites = cfsp.find_sites(model, kinds)[: len(kinds)]
    fills = ones_for(sites)
    edits = tuple(cfsp.Cut(site.name, site.units, (), fills[site.name]) for site in sites)
    cfsp.apply(cfsp.PrunePlan(edits), model)
    return model, cfsp.PrunePlan(edits)


def auto_class(family):
    name = "AutoModelForMaskedLM" if family in ("bert", "roberta") else "AutoModelForCausalLM"
    return getattr(transformers, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_bit_for_bit_with_transformers_and_with_cfsp(family, tokenizer, tmp_path, tokens):
    makers = [lambda kinds=kinds: cut(family, kinds) for kinds in kind_sets(make(family))]
    makers += [lambda: cut(family, kinds_of(make(family)), fill=True), lambda: emptied(family)]
    for number, maker in enumerate(makers):
        model, plan = maker()
        cfsp.save(tmp_path / str(number), model, tokenizer, plan)
        again = auto_class(family).from_pretrained(tmp_path / str(number), trust_remote_code=True)
        assert torch.equal(logits(again, tokens), logits(model, tokens))
        head = "causal_lm" if auto_class(family) is AutoModelForCausalLM else "masked_lm"
        mine, _ = cfsp.load(tmp_path / str(number), head=head)
        assert torch.equal(logits(mine, tokens), logits(model, tokens))
        if head == "causal_lm":
            ids = tokens["input_ids"]
            assert torch.equal(again.generate(ids, **SETTINGS), model.generate(ids, **SETTINGS))


FRESH = """
import sys
sys.modules["cfsp"] = None  # importing it would fail
import torch, transformers
for folder in sys.argv[1:]:
    kind = transformers.AutoModelForMaskedLM if "bert" in folder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, trust_remote_code=True)
    saved = torch.load(f"{folder}/expected.pt")
    with torch.no_grad():
        difference = (model(**saved["tokens"]).logits - saved["logits"]).abs().max().item()
    print(folder.rsplit("/", 1)[-1], difference)
"""


def test_a_process_that_never_heard_of_cfsp_computes_the_same(tokenizer, tmp_path, tokens):
    folders = []
    for family in FAMILIES:
        model, plan = cut(family, kinds_of(make(family)), fill=True)
        folders.append(tmp_path / family)
        cfsp.save(folders[-1], model, tokenizer, plan)
        torch.save({"tokens": tokens, "logits": logits(model, tokens)}, folders[-1] / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, folders)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HOME": "/"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{family} 0.0" for family in FAMILIES]


@pytest.mark.parametrize(
    ("family", "kinds", "plain"),
    [
        ("llama", ["block"], True),
        ("llama", ["query_heads"], False),  # other widths in the two blocks
        ("qwen3", ["hidden"], True),
        ("llama", ["mlp"], False),
    ],
)
def test_blocks_that_are_alike_need_no_remote_code(family, kinds, plain, tokenizer, tmp_path):
    model = make(family)
    sites = cfsp.find_sites(model, kinds)
    widths = [4, 8] if kinds in (["query_heads"], ["mlp"]) else [1]
    edits = [
        cfsp.Cut(site.name, site.units, tuple(range(0, site.units, site.units // width)))
        for site, width in zip(sites, widths, strict=True)
    ]
    cfsp.apply(cfsp.PrunePlan(tuple(edits)), model)
    cfsp.save(tmp_path / "m", model, tokenizer, cfsp.PrunePlan(tuple(edits)))
    assert (tmp_path / "m" / "modeling_pruned.py").exists() != plain
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert ("auto_map" in config) != plain
    if plain:
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=False)


def test_uniform_widths_stand_in_a_plain_config(tokenizer, tmp_path):
    model = make("mistral")
    options = {"kinds": kinds_of(model), "criterion": "magnitude", "allocator": "uniform"}
    plan = cfsp.plan(model, batches(), sparsity=0.5, **options)
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"], config["head_dim"]) == (20, 4, 6)
    assert "pruned" not in config
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert again.num_parameters() == model.num_parameters()


def test_sizes_of_the_blocks_stand_in_the_config(tokenizer, tmp_path):
    model, plan = cut("llama", ["mlp", "attention"])
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    widths = {edit.site: len(edit.keep) for edit in plan.edits}
    for block, own in config["per_layer_config"].items():
        assert own["intermediate_size"] == widths[f"model.layers.{block}.mlp"]
        assert own["num_key_value_heads"] == widths[f"model.layers.{block}.attention"]
        assert own["num_attention_heads"] == 2 * own["num_key_value_heads"]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_loaded_checkpoint_is_pruned_and_saved_again(family, tokenizer, tmp_path, tokens):
    model, plan = cut(family, ["mlp", "attention"])
    cfsp.save(tmp_path / "once", model, tokenizer, plan)
    model, _ = cfsp.load(tmp_path / "once")
    again = cfsp.plan(model, batches(), kinds=["mlp"], criterion="wanda_sp", sparsity=0.3)
    cfsp.apply(again, model)
    cfsp.save(tmp_path / "twice", model, tokenizer, again)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice", trust_remote_code=True)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    loaded.save_pretrained(tmp_path / "thrice")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "thrice", trust_remote_code=True)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_trains_with_peft(tokenizer, tmp_path, tokens):
    peft = pytest.importorskip("peft")
    model, plan = cut("llama", ["mlp", "attention"], fill=True)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)
    lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = peft.get_peft_model(loaded, lora)
    optimizer = torch.optim.SGD([weight for weight in tuned.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        loss = tuned(**tokens, labels=tokens["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merged = tuned.merge_and_unload()
    cfsp.save(tmp_path / "tuned", merged, tokenizer, plan)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert torch.equal(logits(again, tokens), logits(merged, tokens))


def test_lm_eval_takes_it(tokenizer, tmp_path, tiny_checkpoint):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model, _ = cfsp.load(tiny_checkpoint)
    plan = cfsp.plan(model, batches(), kinds=["mlp", "attention"], criterion="magnitude", sparsity=0.4)
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    harness = huggingface.HFLM(pretrained=str(tmp_path / "m"), trust_remote_code=True, device="cpu")
    request = Instance("loglikelihood", {}, ("the cat sat on", " the mat"), 0)
    ((found, _),) = harness.loglikelihood([request], disable_tqdm=True)
    context, rest = (tokenizer(text)["input_ids"] for text in ("the cat sat on", " the mat"))
    with torch.no_grad():
        scores = model(torch.tensor([context + rest])).logits.log_softmax(-1)[0, len(context) - 1 : -1]
    assert found == pytest.approx(scores.gather(1, torch.tensor(rest)[:, None]).sum().item(), rel=1e-4)


# Bad input


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
    with pytest.raises(ValueError, match="model.safetensors is not as it was saved; if that is meant"):
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
from families import make
from test_checkpoints import cut
from transformers import AutoTokenizer
import cfsp
from cfsp.loading import REFERENCE
model, plan = cut("llama", ["mlp"])
tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    cfsp.save(sys.argv[1], model, tokenizer, plan, overwrite=True)
except OSError as error:
    print("refused", error)
"""


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
        ('{"format": 0, "edits": []}', "format 0; this version of cfsp reads 1"),
        ('{"format": 1, "edits": [{"site": "a"}], "notes": {}}', "is broken"),
        (
            '{"format": 1, "notes": {}, "edits": [{"site": "a", "units": 2, "keep": [0], "fill": true}]}',
            "broken",
        ),
    ],
)
def test_plans_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        cfsp.PrunePlan.load(tmp_path)


def test_every_kind_of_site_is_saved_by_some_family():
    assert {kind for family in FAMILIES for kind in all_kinds(make(family))} == {
        "mlp",
        "attention",
        "query_heads",
        "block",
        "hidden",
    }
