"""Right answers of local files: no label that the harness would count as wrong, or stumble over, passes."""

import json

import pytest

from cfsp.evaluation.local_tasks import read_questions

ARC = {"question": "q", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}
ROWS = {
    "boolq": {"question": "q", "passage": "p", "answer": True},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
    "hellaswag": {"query": "q", "choices": ["a", "b", "c", "d"], "gold": 3},
    "winogrande": {"sentence": "the _ fell.", "option1": "cup", "option2": "jar", "answer": "2"},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "openbookqa": {**ARC, "question_stem": "q"},
    "mmlu": {"question": "q", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 0},
    "gsm8k": {"question": "q", "answer": "two and two #### 4"},
}
RAW = {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["a", "b", "c", "d"], "label": "3"}
LABEL = {"boolq": {key: ROWS["boolq"][key] for key in ("question", "passage")}, "hellaswag": RAW}


def read(tmp_path, task, *rows):
    path = tmp_path / f"{task}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_questions(task, path)


def changed(task, given):
    """The row of a task with other fields; of another form if they are that form's."""
    base = LABEL[task] if task in LABEL and "label" in given else ROWS[task]
    return {**base, **given}


@pytest.mark.parametrize(
    ("task", "given", "found"),
    [
        ("boolq", {"label": 1}, {"label": 1}),
        ("boolq", {"label": "0"}, {"label": 0}),
        ("boolq", {"label": True}, {"label": 1}),
        ("boolq", {"answer": "false"}, {"label": 0, "answer": False}),
        ("piqa", {"label": "1"}, {"label": 1}),
        ("hellaswag", {"label": "2"}, {"label": "2"}),
        ("hellaswag", {"label": 2}, {"label": "2"}),
        ("hellaswag", {"gold": "1"}, {"gold": 1, "label": "1"}),
        ("winogrande", {"answer": 1}, {"answer": "1"}),
        ("arc_easy", {"answerKey": "A "}, {"answerKey": "A"}),
        (
            "arc_challenge",
            {"choices": {"text": ["a", "b"], "label": [1, 2]}, "answerKey": 2},
            {"choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        ),
        ("mmlu", {"answer": "B"}, {"answer": 1}),
        ("mmlu", {"answer": "3"}, {"answer": 3}),
    ],
)
def test_an_answer_that_can_mean_one_thing_gets_the_form_of_the_hub(tmp_path, task, given, found):
    (row,) = read(tmp_path, task, changed(task, given))
    for name, value in found.items():
        assert (row[name], type(row[name])) == (value, type(value))


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_the_hub_stay_as_they_are(tmp_path, task):
    (row,) = read(tmp_path, task, ROWS[task])
    assert {key: row[key] for key in ROWS[task]} == ROWS[task]
    if task in LABEL:
        whole = changed(task, {"label": {"boolq": 1, "hellaswag": "3"}[task]})
        assert read(tmp_path, task, whole) == [whole]


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("boolq", {"label": -1}, "label=-1; expected 0, 1, true or false; rows of a public test split"),
        ("boolq", {"answer": "maybe"}, "answer='maybe'; expected 0, 1, true or false"),
        ("piqa", {"label": -1}, "label=-1; expected .* 0 to 1; rows of a public test split have no answer"),
        ("piqa", {"label": 7}, "label=7; expected the place of the right choice, 0 to 1"),
        ("piqa", {"label": True}, "label=True; expected the place"),
        ("piqa", {"sol1": ""}, "sol1 and sol2 hold ''; expected texts that are not empty"),
        ("hellaswag", {"gold": 9}, "gold=9; expected the place of the right choice, 0 to 3"),
        ("hellaswag", {"label": ""}, "label=''; expected .* 0 to 3; rows of a public test split"),
        ("hellaswag", {"choices": "abcd"}, "choices='abcd'; expected a list of two or more texts"),
        ("winogrande", {"answer": ""}, 'answer=\'\'; expected "1" or "2"'),
        ("winogrande", {"sentence": "it fell."}, "sentence='it fell.'; expected a _ for the options"),
        ("winogrande", {"sentence": "it is a _"}, "and words after it"),
        ("arc_easy", {"answerKey": "Z"}, "answerKey='Z'; expected one of A, B"),
        ("openbookqa", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "a label for each of 2 texts"),
        ("mmlu", {"answer": "E"}, "answer='E'; expected .* 0 to 3 or A to D"),
        ("mmlu", {"choices": ["a", "b"]}, "expected a list of four"),
        ("gsm8k", {"answer": "four"}, "answer='four'; expected a text with #### NUMBER at its end"),
    ],
)
def test_an_answer_that_no_choice_has_is_named_with_its_line(tmp_path, task, given, message):
    with pytest.raises(ValueError, match=rf"{task}\.jsonl, line 2: {task} has .*{message}"):
        read(tmp_path, task, ROWS[task], changed(task, given))
