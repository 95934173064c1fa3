"""Distillation from another model than the dense one."""

import pytest
import torch
from labelled import encoder, encoder_tokenizer, saved_encoder
from transformers import AutoTokenizer

from cfsp.records.identity import run_id
from cfsp.recovery.distilled_from import load_teacher
from cfsp.training.distillation import Distillation


def from_teacher(path, **options):
    weights = {"label_weight": 0.0, "logit_weight": 1.0, "hidden_weight": 0.0, "temperature": 2.0}
    return Distillation(**weights | options, teacher=None if path is None else str(path))


def test_the_teacher_is_frozen_in_eval_mode_and_is_what_is_imitated(classify, tmp_path):
    folder = saved_encoder(tmp_path / "teacher")
    student = encoder()
    with torch.no_grad():
        student.classifier.weight.normal_()
    objective = from_teacher(folder).of(classify)
    teacher = load_teacher(objective, student, encoder_tokenizer())
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not objective.needs_dense
    coded = classify.encode(encoder_tokenizer(), classify.items(classify.test))
    batch = classify.collator(encoder_tokenizer())(coded.examples[:4])
    same = encoder()
    assert objective.loss(student, batch, teacher, None, None) > 0.01
    assert objective.loss(same, batch, teacher, None, None).abs() < 1e-6  # it has the teacher's weights


def test_without_a_path_it_is_the_dense_model(classify):
    assert from_teacher(None).needs_dense
    assert load_teacher(from_teacher(None), encoder(), encoder_tokenizer()) is None
    config = {"recovery": {"objective": {"temperature": 2.0}}}
    with_key = {"recovery": {"objective": {"temperature": 2.0, "teacher": None}}}
    other = {"recovery": {"objective": {"temperature": 2.0, "teacher": "x"}}}
    assert run_id(config) == run_id(with_key) != run_id(other)


def test_a_teacher_that_does_not_fit_is_named(tmp_path):
    folder = saved_encoder(tmp_path / "labels", num_labels=3)
    with pytest.raises(
        ValueError, match="chooses between label_0, label_1, label_2; expected a head as .*, label_0, label_1"
    ):
        load_teacher(from_teacher(folder), encoder(), encoder_tokenizer())
    folder = saved_encoder(tmp_path / "words")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more"])
    with pytest.raises(ValueError, match="has another vocabulary than the model"):
        load_teacher(from_teacher(folder), encoder(), tokenizer)
    with pytest.raises(ValueError, match="there is no such folder"):
        load_teacher(from_teacher(tmp_path / "nothing"), encoder(), encoder_tokenizer())
    headless = saved_encoder(tmp_path / "bare", "BertModel")
    with pytest.raises(ValueError, match="lacks classifier"):
        load_teacher(from_teacher(headless), encoder(), encoder_tokenizer())


def test_hidden_states_need_as_many_blocks(tmp_path):
    student = encoder()
    student.bert.encoder.layer = student.bert.encoder.layer[:1]
    objective = from_teacher(saved_encoder(tmp_path / "teacher"), hidden_weight=1.0)
    with pytest.raises(ValueError, match=r"\(2, 32\), whose hidden states are no goal for \(1, 32\)"):
        load_teacher(objective, student, encoder_tokenizer())


@pytest.mark.slow
def test_both_trainings_record_it(task_run, tmp_path):
    folder, teacher = saved_encoder(tmp_path / "bert"), saved_encoder(tmp_path / "teacher")
    words = [f"model.path={folder}", "sites=[mlp,attention]", "sparsity=0.3", "schedule=movement"]
    words += ["schedule.pruner.tile=4", "recovery=full", "recovery/objective=distillation_with_labels"]
    for part, steps in (("schedule", 6), ("recovery", 2)):
        words += [f"{part}.objective.teacher={teacher}", f"{part}.training.max_steps={steps}"]
        words += [f"{part}.training.warmup=0", f"{part}.training.batch_size=4", f"{part}.data.held_out=4"]
    code, record, err = task_run(*words)
    assert code == 0, err
    assert record.training["teacher"] == record.schedule_training["teacher"]
    assert record.training["teacher"]["path"] == str(teacher)
    assert len(record.training["teacher"]["fingerprint"]) > 8
