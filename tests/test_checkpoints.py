"""Checkpoints: what is saved loads anywhere, bit for bit, or not at all."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, batches, kinds_of, make, most_distinct, words
from plans import kind_sets, logits
from pruned_models import auto_class, cut, emptied
from transformers import AutoModel, AutoModelForCausalLM

import cfsp
from cfsp.model.modeling_pruned import block_numbers
from cfsp.storage.fingerprints import fingerprint

SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="session")
def tokenizer():
    return words()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", most_distinct(FAMILIES))
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "bert"])
def test_automodel_loads_it_without_its_head(family, tokenizer, tmp_path, tokens):
    model, plan = cut(family, kinds_of(make(family)), fill=True)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    again = AutoModel.from_pretrained(tmp_path / "m", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(**tokens)[0], model.base_model(**tokens)[0])


def test_sizes_are_read_where_transformers_leaves_them_as_in_json():
    config = SimpleNamespace(intermediate_size=40, num_attention_heads=8)
    config.per_layer_config = {"0": {"intermediate_size": 0}}  # what equals the globals is left out
    names = {"width": "intermediate_size", "heads": "num_attention_heads"}
    assert block_numbers(config, 0, names) == {"width": 0, "heads": 8}
    assert block_numbers(config, 1, names) == {"width": 40, "heads": 8}


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


@pytest.mark.slow
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


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_without_any_attention_is_saved(family, tokenizer, tmp_path, tokens):
    model = make(family)
    sites = cfsp.find_sites(model, ["attention"])
    plan = cfsp.PrunePlan(tuple(cfsp.Cut(site.name, site.units, ()) for site in sites))
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    again, _ = cfsp.load(tmp_path / "m")
    assert torch.equal(logits(again, tokens), logits(model, tokens))


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


@pytest.mark.quick_cases(1)
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


def test_lm_eval_takes_it(tmp_path, tiny_checkpoint):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model, tokenizer = cfsp.load(tiny_checkpoint)
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


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_another_activation_is_the_models_from_then_on(family, tokenizer, tmp_path, tokens):
    cfsp.save(tmp_path / "dense", make(family), tokenizer, cfsp.PrunePlan(()))
    head = "masked_lm" if family == "bert" else "causal_lm"
    model, _ = cfsp.load(tmp_path / "dense", head=head, activation="relu")
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ReLU)]
    assert len(names) >= model.config.num_hidden_layers
    assert not torch.equal(logits(model, tokens), logits(make(family), tokens))
    assert fingerprint(model) != fingerprint(cfsp.load(tmp_path / "dense", head=head)[0])
    cfsp.save(tmp_path / "relu", model, tokenizer, cfsp.PrunePlan(()))
    again = auto_class(family).from_pretrained(tmp_path / "relu")
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_an_activation_that_does_not_exist_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"activation='rellu': expected one of .*relu.*silu"):
        cfsp.load(tiny_checkpoint, activation="rellu")
