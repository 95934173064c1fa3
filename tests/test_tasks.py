"""Tasks besides language modelling: rows, examples, calibration and metrics."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled import encoder, encoder_tokenizer
from tokenizers import normalizers

from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.tasks.base import TaskCollator
from cfsp.data.tasks.task_data import TaskCalibration, TaskExamples
from cfsp.evaluation.task import TaskScores
from cfsp.records.identity import run_id
from cfsp.storage.code import files_of


def test_rows_of_a_tsv_are_as_glue_has_them(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\n"quoted\t1\n\nplain \t0\n')
    assert [row for _, row in LabelledRows(paths=str(path)).rows()] == [
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
        classify.items(LabelledRows(paths=str(tmp_path / name)))


def test_labels_are_names_or_numbers(tmp_path, classify):
    path = tmp_path / "a.jsonl"
    rows = [{"sentence": "x", "label": label} for label in ("yes", 1, "1", 0, "no")]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [item.label for item in classify.items(LabelledRows(paths=str(path)))] == [1, 1, 1, 0, 0]


def test_pairs_have_token_types_and_long_ones_are_cut(tmp_path, classify):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"one": "a cat", "two": "the dog ran " * 9, "label": 1}))
    pairs = replace(classify, text="one", text_pair="two")
    coded = pairs.encode(encoder_tokenizer(), pairs.items(LabelledRows(paths=str(path))))
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
    assert (len(split.train), len(split.held_out["toy"])) == (20, 8)
    assert split.sources == {"toy": [*range(20)]}
    assert split.lost == {"toy": {"passages": 20, "dropped": 0, "cut": 0}}


def test_language_modelling_changes_no_id():
    config = {"sparsity": 0.2, "model": {"path": "m", "device": "cpu"}}
    plain = "cfsp.data.tasks.language_modelling.LanguageModelling"
    assert run_id(config | {"task": {"_target_": plain}}) == run_id(config)
    assert run_id(config | {"task": {"_target_": plain, "x": 1}}) != run_id(config)


def test_other_metrics_and_other_code_are_measured_anew(classify):
    model, tokenizer = encoder(), encoder_tokenizer()
    more = replace(classify, metrics=["accuracy", "matthews"])
    one, two = (TaskScores(task, batch_size=8) for task in (classify, more))
    assert one.protocol(model, tokenizer) != two.protocol(model, tokenizer)
    metrics = {**one.run(model, tokenizer)}, {**two.run(model, tokenizer)}
    assert metrics[0]["accuracy/toy"] == metrics[1]["accuracy/toy"]
    assert "cfsp.data.tasks.metrics" in files_of(*map(type, one.depends_on()))


def test_other_tokens_are_another_protocol(classify):
    model, scores = encoder(), TaskScores(classify, batch_size=8)
    before = scores.protocol(model, encoder_tokenizer())
    other = encoder_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("good", "bad")
    assert scores.protocol(model, other)["tokens_sha256"] != before["tokens_sha256"]
    assert scores.protocol(model, encoder_tokenizer()) == before


def test_outputs_that_are_nan_are_refused(classify):
    model = encoder()
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="task toy: an output is NaN or infinite"):
        TaskScores(classify, batch_size=8).run(model, encoder_tokenizer())
