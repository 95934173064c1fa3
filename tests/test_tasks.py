"""Tasks besides language modelling: rows, examples, metrics, and runs from one command to a saved head."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled import encoder, encoder_tokenizer, saved_encoder, toy
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

import cfsp
from cfsp.cli.main import main
from cfsp.data.tables import Table
from cfsp.data.tasks.base import TaskCollator
from cfsp.data.tasks.examples import TaskCalibration, TaskExamples
from cfsp.data.tasks.sequence_classification import SequenceClassification
from cfsp.evaluation.task import TaskScores
from cfsp.records.identity import run_id
from cfsp.records.record import Record
from cfsp.training.base import Change
from cfsp.training.distillation import Distillation

SMALL = ["calibration.samples=12", "calibration.batch_size=4", "task.window=16"]


@pytest.fixture
def rows(tmp_path):
    return toy(tmp_path / "train.tsv", 256, seed=0), toy(tmp_path / "dev.tsv", 32, seed=1)


@pytest.fixture
def classify(rows):
    train, dev = (Table(paths=str(path)) for path in rows)
    return SequenceClassification(
        name="toy",
        train=train,
        test=dev,
        text="sentence",
        text_pair=None,
        label="label",
        labels=["no", "yes"],
        metrics=["accuracy"],
        window=16,
    )


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, rows):
    """Type a command with a task; exit code, the record if there is one, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, task="sst2"):
        paths = [f"task.train.paths={rows[0]}", f"task.test.paths={rows[1]}"]
        base = [f"task={task}", *([] if "task.train" in " ".join(arguments) else paths), *SMALL]
        monkeypatch.setattr(sys, "argv", ["cfsp", *base, *arguments])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        lines = [line for line in out.splitlines() if line.endswith(".json")]
        return code, Record.load(lines[-1]) if lines else None, err

    return call


def test_rows_of_a_tsv_are_as_glue_has_them(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\n"quoted\t1\n\nplain \t0\n')
    assert [row for _, row in Table(paths=str(path)).rows()] == [
        {"sentence": '"quoted', "label": "1"},
        {"sentence": "plain ", "label": "0"},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "sentence\tlabel\none\n", r"a.tsv, line 2: 1 cells; expected 2"),
        (
            "a.tsv",
            "sentence\tlabel\nfine\t1\nfine\t2\n",
            r"a.tsv, line 3: 'label' is '2'; expected one of no, yes",
        ),
        ("a.tsv", "sentence\tlabel\nfine\t-1\n", r"a.tsv, line 2: 'label' is '-1'"),
        ("a.tsv", "sentence\tlabel\nfine\t\n", r"a.tsv, line 2: 'label' is ''"),
        ("a.tsv", "sentence\nfine\n", r"a.tsv, line 2: 'label' is not there; it has 'sentence'"),
        ("a.tsv", "sentence\tlabel\n", r"has no rows"),
        ("a.tsv", "sentence\tsentence\n", r"line 1: .*each once"),
        ("a.jsonl", '{"sentence": "x", "label": null}\n', r"a.jsonl, line 1: 'label' is null"),
        ("a.jsonl", '{"sentence": 3, "label": 1}\n', r"a.jsonl, line 1: 'sentence' is int; expected text"),
        ("a.csv", "sentence,label\n", r"a.csv: expected one of .jsonl, .*.tsv"),
    ],
)
def test_rows_that_lack_something_are_named(tmp_path, classify, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        classify.items(Table(paths=str(tmp_path / name)))


def test_labels_are_names_or_numbers(tmp_path, classify):
    path = tmp_path / "a.jsonl"
    rows = [{"sentence": "x", "label": label} for label in ("yes", 1, "1", 0, "no")]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [item.label for item in classify.items(Table(paths=str(path)))] == [1, 1, 1, 0, 0]


def test_pairs_have_token_types_and_long_ones_are_cut(tmp_path, classify):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"one": "a cat", "two": "the dog ran " * 9, "label": 1}))
    pairs = replace(classify, text="one", text_pair="two")
    coded = pairs.encode(encoder_tokenizer(), pairs.items(Table(paths=str(path))))
    (example,) = coded.examples
    assert len(example["input_ids"]) == 16
    assert example["token_type_ids"][:4] == [0, 0, 0, 0]
    assert example["token_type_ids"][4:] == [1] * 12
    assert coded.cut == 1


def test_a_batch_is_padded_and_masked():
    batch = TaskCollator(0, 0)([{"input_ids": [5, 6, 7], "labels": [1]}, {"input_ids": [5], "labels": [0]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_metrics_are_their_closed_forms(classify):
    task = replace(classify, metrics=["accuracy", "f1", "f1_macro", "matthews"])
    right, said = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 1]
    items = [replace(classify.items(classify.train)[0], label=label) for label in right]
    found = {name: score.value for name, score in task.scores(said, items).items()}
    hits, false, missed, left = 3, 1, 1, 3
    root = ((hits + false) * (hits + missed) * (left + false) * (left + missed)) ** 0.5
    expected = {
        "accuracy": 6 / 8,
        "f1": 0.75,
        "f1_macro": 0.75,
        "matthews": (hits * left - false * missed) / root,
    }
    assert found == pytest.approx(expected)
    error = task.scores(said, items)["accuracy"].stderr
    assert error == pytest.approx((0.75 * 0.25 / 8) ** 0.5, rel=0.1)


def test_numbers_correlate(classify):
    task = replace(classify, labels=None, metrics=["pearson", "spearman"])
    items = [replace(classify.items(classify.train)[0], label=value) for value in (0.0, 1.0, 2.0, 4.0)]
    found = task.scores([0.0, 1.0, 3.0, 2.0], items)
    assert found["pearson"].value == pytest.approx(np.corrcoef([0, 1, 2, 4], [0, 1, 3, 2])[0, 1])
    assert found["spearman"].value == pytest.approx(0.8)


def test_what_is_measured_is_what_the_model_says_and_padding_changes_nothing(classify):
    model, tokenizer = encoder(), encoder_tokenizer()
    items = classify.items(classify.test)
    said = []
    for item in items:
        inputs = tokenizer(*item.texts, return_tensors="pt")
        with torch.no_grad():
            said.append(int(model(**inputs).logits.argmax()))
    right = [guess == item.label for guess, item in zip(said, items, strict=True)]
    (metric,) = TaskScores(classify, batch_size=5).run(model, tokenizer).values()
    assert metric.value == pytest.approx(sum(right) / len(right))
    assert (metric.n, metric.better, metric.protocol["task"]) == (32, "higher", "toy")


def test_calibration_is_whole_examples_of_the_task(classify):
    batches = TaskCalibration(classify, classify.train, samples=10, seqlen=16, batch_size=4, seed=0).batches(
        encoder_tokenizer()
    )
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    assert all((batch["input_ids"][batch["attention_mask"] == 0] == 0).all() for batch in batches)
    with pytest.raises(ValueError, match="256 rows, less than calibration samples=257"):
        TaskCalibration(classify, classify.train, samples=257, seqlen=16, batch_size=4, seed=0).batches(
            encoder_tokenizer()
        )


def test_training_rows_are_held_out_and_limited_by_seed(classify):
    split = TaskExamples(task=classify, held_out=8, limit=20, seed=0).split(encoder_tokenizer())
    assert (len(split.train), len(split.held_out)) == (20, 8)
    assert split.lost == {"toy": {"passages": 20, "dropped": 0, "cut": 0}}


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
def test_one_command_prunes_a_classifier_and_plain_transformers_loads_it(run, tmp_path, method):
    path = saved_encoder(tmp_path / "bert")
    code, record, err = run(
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


def test_training_makes_the_head_of_an_encoder_that_has_none(run, tmp_path):
    path = saved_encoder(tmp_path / "bert", "BertModel")
    tiny = [
        f"model.path={path}",
        "sparsity=0.3",
        "recovery.data.held_out=8",
        "recovery.training.patience=null",
    ]
    tiny += ["recovery.training.max_steps=150", "recovery.training.learning_rate=3e-3"]
    code, record, err = run(*tiny, "recovery=full", "save=out")
    assert code == 0, err
    assert "newly initialised: classifier.bias, classifier.weight" in err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.9
    assert record.metrics["dense"]["accuracy/sst2"].value < 0.7
    assert record.training["data"] == ["files:train.tsv"]
    # and a second run starts from what the first one made, whose head is there
    code, record, err = run("model.path=out", "sites=[attention]", "sparsity=0")
    assert (code, "newly" in err) == (0, False), err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.9


def test_adapters_train_the_head_too(run, tmp_path):
    path = saved_encoder(tmp_path / "bert", "BertModel")
    tiny = [
        f"model.path={path}",
        "recovery=lora",
        "recovery.data.held_out=8",
        "recovery.training.patience=null",
    ]
    code, record, err = run(
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


@pytest.mark.parametrize(
    ("kind", "pad", "words", "message"),
    [
        (
            "BertModel",
            "[PAD]",
            [],
            "lacks classifier.bias, classifier.weight, which nothing here would train",
        ),
        ("BertModel", "[PAD]", ["recovery=distill"], "which nothing here would train"),
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
            ["recovery=full", "recovery/data=stdlib"],
            "recovery/data=task",
        ),
    ],
)
def test_what_cannot_be_is_an_error_of_one_line(run, tmp_path, kind, pad, words, message):
    path = saved_encoder(tmp_path / "bert", kind, pad)
    code, _, err = run(f"model.path={path}", *words)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("cfsp: ") and "newly" not in line]
    assert re.search(re.escape(message), line), line


def test_a_checkpoint_with_its_labels_in_another_order_is_refused(run, tmp_path):
    names = {0: "Positive", 1: "Negative"}
    path = saved_encoder(
        tmp_path / "bert", id2label=names, label2id={name: key for key, name in names.items()}
    )
    code, _, err = run(f"model.path={path}")
    assert code == 1
    assert "a classifier of Positive, Negative, in this order" in err


def test_language_modelling_changes_no_id():
    config = {"sparsity": 0.2, "model": {"path": "m", "device": "cpu"}}
    plain = "cfsp.data.tasks.language_modelling.LanguageModelling"
    assert run_id(config | {"task": {"_target_": plain}}) == run_id(config)
    assert run_id(config | {"task": {"_target_": plain, "x": 1}}) != run_id(config)
