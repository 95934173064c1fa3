"""A model that cannot be pruned is refused before the work, in one line that says what it is."""

import json
import re
import shutil

import peft
import pytest
import torch
import transformers as t
from families import VOCABULARY, make, words
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING

import cfsp
from cfsp.model.families import LAYOUTS
from cfsp.model.find_sites import find_sites
from cfsp.model.unsupported import why_unsupported

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    make("llama").save_pretrained(tmp_path / "m")
    words().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def with_weight(folder, change):
    weights = load_file(folder / "model.safetensors")
    weights[NAME] = change(weights[NAME])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_an_adapter_is_refused(folder, tmp_path):
    tuned = peft.get_peft_model(
        t.AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(target_modules=["q_proj"])
    )
    tuned.save_pretrained(tmp_path / "alone")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "alone" / file, folder)
    for place in (tmp_path / "alone", folder):
        with pytest.raises(ValueError, match=r"holds an adapter of peft .*; expected it merged"):
            cfsp.load(place)
    with pytest.raises(ValueError, match=r"a PeftModel cannot be pruned; .*merge_and_unload"):
        find_sites(tuned)
    assert len(find_sites(tuned.get_base_model())) == 2  # they are cut with the layer
    assert len(find_sites(tuned.merge_and_unload())) == 2


def own_class(model):
    class Mine(nn.Linear):
        pass

    model.lm_head = Mine(32, VOCABULARY)


def quantised(dtype):
    def quantise(model):
        module = model.model.layers[1].mlp.up_proj
        module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)

    return quantise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own_class, r"lm_head is a .*Mine of float32; expected the family's own"),
        (quantised(torch.int8), r"1\.mlp\.up_proj is a torch.*Linear of int8; expected"),
        (quantised(torch.float8_e4m3fn), r"up_proj is a torch.*Linear of float8_e4m3fn"),
        (
            lambda model: nn.utils.parametrizations.orthogonal(model.lm_head),
            "lm_head is a .*ParametrizedLinear",
        ),
        (
            lambda model: setattr(model.model.layers[0].mlp, "down_proj", nn.Identity()),
            "0.mlp.down_proj is a",
        ),
    ],
)
def test_layers_that_are_not_the_familys_are_named(change, message):
    model = make("llama")
    change(model)
    for kinds in (["mlp"], ["attention"], ["block"]):
        with pytest.raises(ValueError, match=message):
            find_sites(model, kinds)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_stored_as_codes_are_refused(dtype, folder):
    with_weight(folder, lambda weight: weight.to(dtype))
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: {NAME} is stored as .*; expected weights in F64"
    ):
        cfsp.load(folder)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_so_are_those_in_files_of_torch(dtype, sharded, folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if dtype is not None:
        weights[NAME] = weights[NAME].to(dtype)
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save(weights, folder / name)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save(print, folder / "training_args.bin")  # which nothing of transformers reads
    if dtype is None:
        cfsp.load(folder)
        return
    said = rf"{re.escape(name)}: {NAME} is stored as {str(dtype)[6:]}, .*; expected weights in F64"
    with pytest.raises(ValueError, match=said):
        cfsp.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named(value, dtype, folder):
    with_weight(folder, lambda weight: weight.index_fill(1, torch.tensor([3]), value).to(dtype))
    with pytest.raises(ValueError, match=rf"1 weights are NaN or infinite, such as {NAME}"):
        cfsp.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_pointers_of_git_lfs_are_named(name, folder):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")
    with pytest.raises(
        ValueError, match=rf"{name} is a pointer of git-lfs; expected the file \(git lfs pull\)"
    ):
        cfsp.load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer = words()
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})  # as some models are published
    tokenizer.save_pretrained(folder)
    cfsp.load(folder)
    tokenizer.add_tokens(["new", "newer"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has 2 tokens beyond the model's 61, such as 'new' \(number 62\)"):
        cfsp.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 0}, "config.json has num_attention_heads=0; expected 1 or more"),
        ({"num_key_value_heads": -4}, "num_key_value_heads=-4; expected 1 or more"),
        ({"head_dim": 0}, "head_dim=0; expected 1 or more"),
        ({"num_key_value_heads": 3}, "num_attention_heads=8 and num_key_value_heads=3; expected a multiple"),
        ({"num_attention_heads": 4}, r"weight is \[32, 48\] in the checkpoint and \[32, 24\] by config.json"),
        ({"num_attention_heads": "8"}, "'num_attention_heads' expected int, got str"),
        ({"num_attention_heads": None}, "'num_attention_heads' expected int, got NoneType"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"is quantised \(quantization_config"),
        ({"model_type": "foo"}, "model type `foo` but Transformers does not recognize"),
    ],
)
def test_configs_that_are_not_of_the_weights(values, message, folder):
    with_config(folder, **values)
    with pytest.raises(ValueError, match=message):
        cfsp.load(folder)


@pytest.mark.parametrize(
    ("family", "what"),
    [
        ("pegasus", "an encoder-decoder"),
        ("mt5", "an encoder-decoder"),
        ("mixtral", "a mixture of experts (num_local_experts 8)"),
        ("glm4_moe", "a mixture of experts (n_routed_experts 128)"),
        ("ernie4_5_moe", "a mixture of experts (moe_num_experts 64)"),
        ("dbrx", "a mixture of experts (moe_num_experts 4)"),
        ("llama4_text", "a mixture of experts (num_local_experts 16)"),
        ("gemma3", "a model of several modalities (text_config, vision_config)"),
        ("qwen2_audio", "a model of several modalities"),
    ],
)
def test_what_a_model_is_that_no_layout_would_help(family, what, tmp_path):
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"model_type {family!r} is not supported: it is {what}")):
        cfsp.load(tmp_path)


def test_every_family_of_transformers_is_told_what_it_is():
    said = {}
    for family in ("mamba", "mamba2", "rwkv", "jamba", "falcon_h1", "recurrent_gemma", "xlstm", "qwen3_next"):
        said[family] = why_unsupported(CONFIG_MAPPING[family]())
    assert all("state-space, recurrent or convolutional" in why for why in said.values())
    for family in CONFIG_MAPPING:
        if family.endswith("_moe"):
            own = {"num_experts": 4} if family == "hunyuan_v1_moe" else {}  # it has one of its own accord
            why = why_unsupported(CONFIG_MAPPING[family](**own)) or ""
            assert any(word in why for word in ("experts", "modalities", "vocabulary", "state-space")), family
        if (family in LAYOUTS and LAYOUTS[family].decoder is None) or family in (
            "olmo",
            "cohere",
            "albert",
            "gptj",
            "doge",
        ):
            assert why_unsupported(CONFIG_MAPPING[family]()) is None
