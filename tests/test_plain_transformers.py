"""A saved folder in plain transformers: it loads without a warning, and so does what is saved of it."""

import json
import logging

import pytest
import torch
from families import kinds_of, make, words
from plans import logits, random_plan
from pruned_models import auto_class, cut
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging as transformers_logging

import cfsp

TRUST = {"trust_remote_code": True}


@pytest.fixture
def warnings_heard():
    """Messages of transformers' loggers."""
    heard = []

    class Ear(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    ear, root = Ear(logging.WARNING), transformers_logging.get_logger("transformers")
    level = root.level
    root.setLevel(logging.WARNING)
    root.addHandler(ear)
    yield heard
    root.removeHandler(ear)
    root.setLevel(level)


def saved(path, family="llama"):
    model, plan = cut(family, ["mlp", "attention"], fill=True)
    cfsp.save(path, model, words(), plan)
    return path


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "m")


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "roberta"])
def test_nothing_is_warned_of(family, tmp_path, tokens, warnings_heard):
    model, plan = cut(family, kinds_of(make(family)), fill=True)
    cfsp.save(tmp_path / "m", model, words(), plan)
    warnings_heard.clear()
    logging.Logger.warning_once.cache_clear()  # what saving has said once
    config = AutoConfig.from_pretrained(tmp_path / "m", **TRUST)
    again = auto_class(family).from_pretrained(tmp_path / "m", **TRUST)
    base = AutoModel.from_pretrained(tmp_path / "m", **TRUST, **no_pooler(family))
    logits(again, tokens)
    base(**tokens)
    assert config.num_attention_heads == model.config.num_attention_heads
    if auto_class(family) is AutoModelForCausalLM:
        again.generate(**tokens, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert warnings_heard == []


def no_pooler(family):
    """The pooler of an encoder is new in its base model, and transformers rightly says so."""
    return {"add_pooling_layer": False} if family == "roberta" else {}


def test_the_warnings_are_heard_where_there_is_something_to_warn_of(folder, warnings_heard):
    logging.Logger.warning_once.cache_clear()
    AutoConfig.from_pretrained(folder)  # the family's own config, whose validators read global sizes
    assert any("intermediate_size" in one or "num_attention_heads" in one for one in warnings_heard)


def test_a_config_says_the_sizes_of_every_block(folder):
    config = AutoConfig.from_pretrained(folder, **TRUST)
    own = json.loads((folder / "config.json").read_text())["per_layer_config"]
    for block, sizes in own.items():
        found = config.per_layer_config[int(block)]
        assert {name: getattr(found, name) for name in sizes} == sizes


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM])
def test_what_transformers_saves_loads_again(kind, folder, tmp_path, tokens):
    model = kind.from_pretrained(folder, **TRUST)
    model.save_pretrained(tmp_path / "again")
    check_saved_again(kind, model, folder, tmp_path / "again", tokens)


def test_a_model_of_the_class_itself_keeps_the_modelling_file(tmp_path, tokens):
    folder = saved(tmp_path / "m", "granite")  # an auto class would mark the class: none has loaded this one
    name = "modeling_pruned.PrunedGraniteForCausalLM"
    model = get_class_from_dynamic_module(name, str(folder)).from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    check_saved_again(AutoModelForCausalLM, model, folder, tmp_path / "again", tokens)


def check_saved_again(kind, model, folder, target, tokens):
    assert (target / "modeling_pruned.py").read_bytes() == (folder / "modeling_pruned.py").read_bytes()
    with torch.no_grad():
        assert torch.equal(kind.from_pretrained(target, **TRUST)(**tokens)[0], model(**tokens)[0])


def test_a_classifier_is_built_on_the_familys_base_model(tmp_path, tokens):
    torch.manual_seed(0)
    config = make("llama").config
    config.num_labels = 3
    model = LlamaForSequenceClassification(config).eval()
    plan = random_plan(cfsp.find_sites(model, ["mlp", "attention"]))
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, words(), plan)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", **TRUST)
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_a_config_that_is_saved_alone_keeps_the_modelling_file(folder, tmp_path, tokens):
    AutoConfig.from_pretrained(folder, **TRUST).save_pretrained(tmp_path / "config")
    config = AutoConfig.from_pretrained(tmp_path / "config", **TRUST)
    made, given = AutoModelForCausalLM.from_config(config, **TRUST), cfsp.load(folder)[0]
    made.load_state_dict(given.state_dict())
    assert torch.equal(logits(made.eval(), tokens), logits(given, tokens))


def test_a_model_of_the_modelling_file_becomes_plain_where_it_can(folder, tmp_path, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, **TRUST)
    model.config.per_layer_config = None
    stock = make("llama")
    model.model.layers = stock.model.layers
    cfsp.save(tmp_path / "plain", model, words(), cfsp.PrunePlan(()))
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not (tmp_path / "plain" / "modeling_pruned.py").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(again) is LlamaForCausalLM
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_a_dense_model_is_its_own_class_after_a_pruned_one_was_loaded(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder, **TRUST)
    make("llama").save_pretrained(tmp_path / "dense")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "dense", **TRUST)) is LlamaForCausalLM


def test_tokenizer_and_pipeline_find_their_way(folder):
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == words().get_vocab()
    made = pipeline("text-generation", model=str(folder), **TRUST, device="cpu")
    (answer,) = made("the cat", max_new_tokens=2, do_sample=False)
    assert answer["generated_text"].startswith("the cat")
