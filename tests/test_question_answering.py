"""Question answering: SQuAD's figures, places of answers in windows, and a run."""

import json
import sys

import pytest
import torch
from labelled import encoder_tokenizer, saved_encoder
from transformers import AutoModelForQuestionAnswering

from cfsp.cli.main import main
from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.tasks.question_answering import QuestionAnswering
from cfsp.data.tasks.spans import Window, likeliest_span
from cfsp.data.tasks.squad import best, exact, f1
from cfsp.records.record import Record

CONTEXT = "a cat sat by the old tree . " * 4 + "a new dog ran under it . " + "who was in the film ? " * 3


@pytest.mark.parametrize(
    ("said", "answers", "same", "shared"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("the old cat", ["cat"], 0, 2 / 3),  # articles go: two words against one
        ("a cat sat", ["dog ran", "the cat"], 0, 2 / 3),  # the nearest counts
        ("big cat big", ["big big dog"], 0, 2 / 3),  # two of three words each
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),  # an answer of which nothing is left is none
    ],
)
def test_exact_match_and_f1_are_squads(said, answers, same, shared):
    assert best(exact, said, answers) == same
    assert best(f1, said, answers) == pytest.approx(shared)


def squad(**options):
    table = LabelledRows(paths="unread.json")
    fixed = {"name": "squad", "train": table, "test": table, "window": 24, "stride": 8, "longest": 5}
    return QuestionAnswering(**fixed | {"no_answer": False} | options)


def asked(answer="new dog", **more):
    return {
        "question": "who ran ?",
        "context": CONTEXT,
        "answers": [{"text": answer, "answer_start": CONTEXT.index(answer)}],
        "id": "q1",
        **more,
    }


def test_places_of_answers_are_right_in_every_window():
    task, tokenizer = squad(), encoder_tokenizer()
    item = task.item("here", asked())
    coded = task.encode(tokenizer, [item])
    holding = 0
    for example, window in zip(coded.examples, coded.about, strict=True):
        first, last = example["labels"]
        tokens = tokenizer.convert_ids_to_tokens(example["input_ids"])
        covered = [offset for offset in window.offsets if offset]
        start = item.starts[0]
        if covered[0][0] <= start and covered[-1][1] >= start + len("new dog"):
            assert tokens[first : last + 1] == ["new", "dog"]
            assert item.context[window.offsets[first][0] : window.offsets[last][1]] == "new dog"
            holding += 1
        else:
            assert (first, last) == (0, 0)
        assert len(example["input_ids"]) <= 24
    assert 0 < holding < len(coded.examples)
    spans = [
        (window.offsets[-2], after.offsets)
        for window, after in zip(coded.about, coded.about[1:], strict=False)
    ]
    assert all(end in offsets for end, offsets in spans)  # they overlap
    assert coded.cut == 0


def test_the_likeliest_span_of_all_windows_is_the_answer():
    offsets = (None, None, (0, 1), (2, 5), (6, 9))
    windows = [Window(0, offsets, 0), Window(0, offsets, 0)]
    logits = torch.zeros(2, 2, 5)
    logits[1, 0, 3], logits[1, 1, 4] = 4.0, 3.0
    logits[0, 0, 4], logits[0, 1, 2] = 9.0, 9.0  # ends before it begins
    assert likeliest_span(windows, [*logits], 5, False) == (6, 9)  # 9 + 0
    logits[0] = 0
    assert likeliest_span(windows, [*logits], 5, False) == (2, 9)
    assert likeliest_span(windows, [*logits], 1, False) in ((2, 5), (6, 9))
    logits[:, :, 0] = 5.0
    assert likeliest_span(windows, [*logits], 5, True) is None
    assert likeliest_span(windows, [*logits], 5, False) == (2, 9)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked(answers=[]), "here: no answer; expected one, or task.no_answer=true"),
        (asked(answers=[{"text": "dog", "answer_start": 0}]), "here: answer 'dog' does not stand at 0"),
        (asked(answers=[{"text": "dog"}]), "here: answers of an unknown form"),
        (asked(context=None), "here: 'context' is null"),
    ],
)
def test_answers_that_are_not_there_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        squad().item("here", row)


def test_a_question_needs_room(tmp_path):
    item = squad().item("here", asked(question="who ran " * 12))
    with pytest.raises(ValueError, match="here: a question of 26 tokens leaves no room"):
        squad().encode(encoder_tokenizer(), [item])


def test_padding_is_no_place_and_the_loss_is_the_models_own():
    task, tokenizer = squad(), encoder_tokenizer()
    from labelled import encoder

    model = encoder("BertForQuestionAnswering")
    coded = task.encode(tokenizer, [task.item("here", asked())])
    batch = task.collator(tokenizer)(coded.examples)
    assert len({len(example["input_ids"]) for example in coded.examples}) > 1
    one = {name: tensor[:1] for name, tensor in batch.items()}
    places = {"start_positions": one["labels"][:, 0], "end_positions": one["labels"][:, 1]}
    own = model(**{name: tensor for name, tensor in one.items() if name != "labels"}, **places).loss
    torch.testing.assert_close(task.loss(model, one, None), own)
    alone = sum(task.loss(model, task.collator(tokenizer)([example]), None) for example in coded.examples)
    torch.testing.assert_close(task.loss(model, batch, None), alone / len(coded.examples))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("lines", ["nested", "flat"])
def test_one_command_prunes_and_trains_it(lines, tmp_path, monkeypatch, capsys):
    qas = [asked(answer, id=answer) for answer in ("new dog", "old tree", "film", "cat", "in", "by") * 8]
    nested = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}], "version": "1.1"}
    path, head = tmp_path / "squad.json", saved_encoder(tmp_path / "bert", "BertForQuestionAnswering")
    path.write_text(json.dumps(nested, indent=1) if lines == "nested" else "\n".join(map(json.dumps, qas)))
    monkeypatch.chdir(tmp_path)
    words = [
        "task=squad",
        f"task.train.paths={path}",
        f"task.test.paths={path}",
        "task.window=32",
        "task.stride=8",
    ]
    words += [f"model.path={head}", "calibration.samples=8", "sites=[mlp,attention]", "save=out"]
    words += [
        "recovery=distill",
        "recovery.objective.label_weight=0.1",
        "recovery.objective.logit_weight=0.9",
    ]
    words += [
        "recovery.objective.temperature=2",
        "recovery.objective.hidden_weight=0.1",
        "recovery.data.held_out=4",
    ]
    monkeypatch.setattr(sys, "argv", ["cfsp", *words, "recovery.training.max_steps=3"])
    main()
    out, _ = capsys.readouterr()
    record = Record.load([line for line in out.splitlines() if line.endswith(".json")][-1])
    assert {*record.metrics["pruned"]} == {"exact_match/squad", "f1/squad"}
    assert record.metrics["pruned"]["f1/squad"].n == 48
    assert record.training["steps"] == 3
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out", trust_remote_code=True)
