"""Local splits: which file is measured, and which one gives the examples."""

from functools import partial
from unittest.mock import patch

import pytest
from harness_rows import HUB, LOCAL, evaluator, write_rows

from cfsp.checkpoints.load import load
from cfsp.evaluation.local_splits import with_data


@pytest.fixture
def file(tmp_path):
    return partial(write_rows, tmp_path)


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        (["anatomy", "virolgy"], r"line 2: subject='virolgy'; expected .* MMLU; did you mean 'virology'"),
        (["Anatomy", "Anatomy"], "line 1: subject='Anatomy'; expected one of the 57 of MMLU"),
        (["anatomy", 7], "line 2: subject=7; expected one of the 57"),
    ],
)
def test_an_unknown_subject_of_mmlu_is_named(subjects, message, file, tiny_checkpoint):
    path = file("mmlu", [{**HUB["mmlu_anatomy"], "subject": one} for one in subjects])
    with pytest.raises(ValueError, match=rf"mmlu\.jsonl, {message}"):
        evaluator(["mmlu"], files={"mmlu": str(path)}).protocol(*load(tiny_checkpoint))


def test_examples_of_mmlu_are_counted_by_subject(file, tiny_checkpoint):
    asked = [{**HUB["mmlu_anatomy"], "subject": subject} for subject in ("anatomy", "virology")]
    shown = [{**HUB["mmlu_anatomy"], "question": f"Which {n}?"} for n in range(3)]
    paths = {"test": str(file("asked", asked)), "dev": str(file("shown", shown))}
    with pytest.raises(ValueError, match="shown.jsonl has 0 of subject virology; expected at least 2 rows"):
        evaluator(["mmlu"], files={"mmlu": paths}, shots=2).protocol(*load(tiny_checkpoint))


@pytest.mark.parametrize("task", ["piqa", "mmlu"])
def test_too_few_examples_of_a_data_set_are_named(task, file, tiny_checkpoint):
    """Those of the hub are read only when the task is run: here a file is not checked before."""
    row = HUB.get(task, HUB["mmlu_anatomy"])
    paths = {"test": str(file(task, [row] * 2)), "dev": str(file("examples", [row] * 3))}
    found = evaluator([task], files={task: paths}, shots=4)
    unchecked = patch("cfsp.evaluation.harness.check_examples")
    with (
        unchecked,
        pytest.raises(ValueError, match=f"{task!r}: its data set has fewer than shots=4 examples"),
    ):
        found.run(*load(tiny_checkpoint))


def other(row):
    return {**row, "goal": "run far away"}


def examples(file, rows):
    """A file of other rows beside the one of the questions."""
    return str(file("piqa", [LOCAL["piqa"]] * 4)), str(file("examples", rows))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"], "files.piqa has train; expected test or validation too, the questions to measure"),
        ([], "files.piqa has no split; expected test or validation too"),
        (
            ["tset"],
            "files.piqa has split 'tset'; expected some of train, dev, validation, test; did you mean",
        ),
        (["test", "trian"], "files.piqa has split 'trian'.*did you mean 'train'"),
    ],
)
def test_splits_of_another_name_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        evaluator(["piqa"], files={"piqa": dict.fromkeys(splits, "a.jsonl")})


@pytest.mark.parametrize("splits", [None, ["validation"], ["test"]])
def test_examples_without_a_file_of_them_are_refused(splits, file, tiny_checkpoint):
    """Examples from the questions' own file would show the answers."""
    path = str(file("piqa"))
    given = dict.fromkeys(splits, path) if splits else path
    message = "zero_shot task 'piqa': 2 examples before each question, and no file of them; expected shots=0"
    with pytest.raises(ValueError, match=message):
        evaluator(["piqa"], files={"piqa": given}, shots=2).protocol(*load(tiny_checkpoint))


@pytest.mark.parametrize(
    ("rows", "shots", "message"),
    [
        ([LOCAL["piqa"], other(LOCAL["piqa"])], 2, "all questions of .*piqa.jsonl are in .*examples.jsonl"),
        ([other(LOCAL["piqa"])], 2, "examples.jsonl has 1; expected at least 2 rows, or fewer shots"),
    ],
)
@pytest.mark.parametrize("splits", [("test", "train"), ("test", "validation"), ("validation", "dev")])
def test_examples_that_do_not_do_are_refused(splits, rows, shots, message, file, tiny_checkpoint):
    paths = dict(zip(splits, examples(file, rows), strict=True))
    with pytest.raises(ValueError, match=message):
        evaluator(["piqa"], files={"piqa": paths}, shots=shots).protocol(*load(tiny_checkpoint))


def test_questions_as_their_own_examples_are_refused(file, tiny_checkpoint):
    paths = dict.fromkeys(("test", "train"), str(file("piqa")))
    with pytest.raises(ValueError, match="so their answers would be among the examples"):
        evaluator(["piqa"], files={"piqa": paths}, shots=2).protocol(*load(tiny_checkpoint))


def test_examples_come_from_their_own_file(file, tiny_checkpoint):
    paths = dict(zip(("validation", "train"), examples(file, [other(LOCAL["piqa"])] * 2), strict=True))
    assert evaluator(["piqa"], files={"piqa": paths}, shots=2).protocol(*load(tiny_checkpoint))["shots"] == 2
    spec = with_data("piqa", {split: [LOCAL["piqa"]] for split in paths})
    assert (spec["test_split"], spec["fewshot_split"]) == ("validation", "train")
