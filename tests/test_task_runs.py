"""Runs with a task: one command from rows to a saved head, training, and what is refused."""

import re
from dataclasses import replace

import pytest
import torch
from labelled import encoder, encoder_tokenizer, saved_encoder
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification

import cfsp
from cfsp.training.base import Change
from cfsp.training.distillation import Distillation


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "method",
    [
        ["criterion=cfsp"],
        ["criterion=flap", "allocator=global_rank", "compensation=mean"],
        ["criterion=obs", "allocator=uniform", "schedule=blockwise", "compensation=least_squares"],
        ["criterion=taylor", "allocator=uniform"],
    ],
    ids=lambda method: method[0],
)
def test_one_command_prunes_a_classifier_and_plain_transformers_loads_it(task_run, tmp_path, method):
    path = saved_encoder(tmp_path / "bert")
    code, record, err = task_run(
        f"model.path={path}", "sites=[mlp,attention]", "sparsity=0.3", "save=out", *method
    )
    assert code == 0, err
    assert record.sparsity["sites"] >= 0.3
    assert record.metrics["pruned"]["accuracy/sst2"].n == 32
    mine, tokenizer = cfsp.load(tmp_path / "out", head="sequence_classification")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    tokens = tokenizer(["the film was good", "a dog"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(mine(**tokens).logits, again(**tokens).logits)
    assert again.config.id2label == {0: "negative", 1: "positive"}
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)(**tokens)
        assert torch.equal(states.last_hidden_state, mine.bert(**tokens).last_hidden_state)


@pytest.mark.slow
def test_training_makes_the_head_of_an_encoder_that_has_none(task_run, tmp_path):
    path = saved_encoder(tmp_path / "bert", "BertModel")
    tiny = [
        f"model.path={path}",
        "sparsity=0.3",
        "recovery.data.held_out=8",
        "recovery.training.patience=null",
    ]
    tiny += ["recovery.training.max_steps=150", "recovery.training.learning_rate=3e-3"]
    code, record, err = task_run(*tiny, "recovery=full", "save=out")
    assert code == 0, err
    assert "newly initialised: classifier.bias, classifier.weight" in err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.9
    assert record.metrics["dense"]["accuracy/sst2"].value < 0.7
    assert record.training["data"] == ["files:train.tsv"]
    # and a second run starts from what the first one made, whose head is there
    code, record, err = task_run("model.path=out", "sites=[attention]", "sparsity=0")
    assert (code, "newly" in err) == (0, False), err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.9


@pytest.mark.slow
def test_adapters_train_the_head_too(task_run, tmp_path):
    path = saved_encoder(tmp_path / "bert", "BertModel")
    tiny = [
        f"model.path={path}",
        "recovery=lora",
        "recovery.data.held_out=8",
        "recovery.training.patience=null",
    ]
    code, record, err = task_run(
        *tiny, "recovery.training.max_steps=150", "recovery.training.learning_rate=1e-2", "save=out"
    )
    assert code == 0, err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.8
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert again.classifier.weight.shape == (2, 32)


def test_distillation_of_a_classifier_is_its_formula(classify):
    model, dense, tokenizer = encoder(), encoder(), encoder_tokenizer()
    with torch.no_grad():
        dense.classifier.weight.mul_(-2)
    examples = classify.encode(tokenizer, classify.items(classify.train)[:6]).examples
    batch = classify.collator(tokenizer)(examples)
    objective = Distillation(label_weight=0.1, logit_weight=0.9, hidden_weight=0.5, temperature=2).of(
        classify
    )
    tokens = {name: tensor for name, tensor in batch.items() if name != "labels"}
    ours, theirs = (one(**tokens, output_hidden_states=True) for one in (model, dense))
    soft = [functional.log_softmax(one.logits / 2, dim=-1) for one in (ours, theirs)]
    expected = 0.1 * functional.cross_entropy(ours.logits, batch["labels"])
    expected += 0.9 * 4 * functional.kl_div(*soft, log_target=True, reduction="batchmean")
    change = Change((0, 1), (0.0, 0.0), None)
    torch.testing.assert_close(objective.loss(model, batch, dense, change, None), expected)
    torch.testing.assert_close(objective.loss(model, batch, dense, change, 12), expected / 2)
    with torch.no_grad():
        dense.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    gaps = []
    for mine, goal in zip(
        model(**tokens, output_hidden_states=True).hidden_states[1:],
        dense(**tokens, output_hidden_states=True).hidden_states[1:],
        strict=True,
    ):
        error = (mine - goal).square().sum(-1) / goal.square().sum(-1)
        shown = batch["attention_mask"]
        gaps.append(((error * shown).sum(1) / shown.sum(1)).mean())
    hidden = Distillation(label_weight=0, logit_weight=0, hidden_weight=1, temperature=1).of(classify)
    torch.testing.assert_close(hidden.loss(model, batch, dense, change, None), torch.stack(gaps).mean())
    with pytest.raises(ValueError, match="a number has no distribution"):
        objective.of(replace(classify, labels=None, metrics=["pearson"]))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("kind", "pad", "words", "message"),
    [
        (
            "BertModel",
            "[PAD]",
            [],
            "lacks classifier.bias, classifier.weight, and nothing here would learn",
        ),
        ("BertModel", "[PAD]", ["recovery=distill"], "and nothing here would learn"),
        ("BertForSequenceClassification", None, [], "the tokenizer has no pad token"),
        (
            "BertForSequenceClassification",
            "[PAD]",
            ["model.head=masked_lm"],
            "expected model.head=sequence_class",
        ),
        ("BertForSequenceClassification", "[PAD]", ["task.test=null"], "has no test split to be judged on"),
        ("BertForSequenceClassification", "[PAD]", ["task.labels=[a,b,c]"], r"labels, of these weights"),
        ("BertForSequenceClassification", "[PAD]", ["task.labels=[a]"], "expected two or more names"),
        ("BertForSequenceClassification", "[PAD]", ["task.metrics=[acc]"], "task.metrics='acc'"),
        ("BertForSequenceClassification", "[PAD]", ["task.window=65"], "the model has 64 positions"),
        (
            "BertForSequenceClassification",
            "[PAD]",
            ["schedule=movement", "recovery/parameters@schedule.parameters=lora"],
            "adapters cannot be merged",
        ),
        (
            "BertForSequenceClassification",
            "[PAD]",
            ["recovery=full", "recovery/data=stdlib"],
            "recovery/data=task",
        ),
    ],
)
def test_what_cannot_be_is_an_error_of_one_line(task_run, tmp_path, kind, pad, words, message):
    path = saved_encoder(tmp_path / "bert", kind, pad)
    code, _, err = task_run(f"model.path={path}", *words)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("cfsp: ") and "newly" not in line]
    assert re.search(re.escape(message), line), line


def test_a_checkpoint_with_its_labels_in_another_order_is_refused(task_run, tmp_path):
    names = {0: "Positive", 1: "Negative"}
    path = saved_encoder(
        tmp_path / "bert", id2label=names, label2id={name: key for key, name in names.items()}
    )
    code, _, err = task_run(f"model.path={path}")
    assert code == 1
    assert "a classifier of Positive, Negative, in this order" in err


def test_a_trained_schedule_learns_the_task_while_it_prunes(task_run, tmp_path):
    path = saved_encoder(tmp_path / "bert", "BertModel")
    words = ["schedule=movement", "recovery/objective@schedule.objective=next_token", "allocator=uniform"]
    words += ["schedule.data.held_out=8", "schedule.training.max_steps=20", "sites=[mlp,attention]"]
    code, record, err = task_run(f"model.path={path}", "sparsity=0.4", *words)
    assert code == 0, err
    assert "newly initialised" in err
    assert record.sparsity["sites"] >= 0.4
    assert record.metrics["pruned"]["accuracy/sst2"].n == 32


def test_a_killed_recovery_goes_on_from_the_weights_that_the_schedule_trained(
    task_run, tmp_path, monkeypatch
):
    from cfsp.recovery.finetune import Finetune

    path, seen = saved_encoder(tmp_path / "bert"), []
    whole = Finetune.run

    def run(self, setting, examples):
        seen.append({name: weight.clone() for name, weight in setting.model.state_dict().items()})
        if len(seen) == 1:
            raise ValueError("killed")
        return whole(self, setting, examples)

    monkeypatch.setattr(Finetune, "run", run)
    words = ["schedule=movement", "recovery/objective@schedule.objective=next_token", "allocator=uniform"]
    words += ["schedule.data.held_out=8", "schedule.training.max_steps=6", "recovery=full", "sparsity=0.4"]
    words += ["recovery.data.held_out=8", "recovery.training.max_steps=2", f"model.path={path}"]
    assert task_run(*words)[0] == 1
    code, _, err = task_run(*words)
    assert code == 0, err
    first, second = seen
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_schedule_that_trains_is_of_a_run():
    with pytest.raises(ValueError, match="made of choices of other groups, which only a run composes"):
        cfsp.plan(encoder(), [], schedule="movement")
