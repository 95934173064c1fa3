"""Local files of zero-shot questions, with the columns that the harness's tasks read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfsp.data.rows import MISSING, check_texts, field, json_rows, strings
from cfsp.data.texts import Text
from cfsp.evaluation.right_answers import ANSWERED


@dataclass(frozen=True)
class Questions(Text):
    """A local file of a task as a text; each question is a document."""

    task: str
    path: str

    @property
    def label(self) -> str:
        return self.task

    def documents(self) -> list[str]:
        return [" ".join(strings(row)) for row in read_questions(self.task, Path(self.path))]


def read_questions(task: str, path: Path) -> list[dict[str, Any]]:
    """Return rows as the harness's task reads them. Raises ValueError for a broken row."""
    return [row for _, row in placed_questions(task, path)]


def placed_questions(task: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the place of each row, for errors, and the row. Raises ValueError for a broken row."""
    found = []
    for where, row in json_rows(path):
        if not isinstance(row, Mapping) or not any(has(row, columns) for columns in NEEDED.get(task, ((),))):
            wanted = " or ".join(", ".join(columns) for columns in NEEDED.get(task, (("a JSON object",),)))
            raise ValueError(f"{where}: not a question of {task}; expected {wanted}")
        check_texts(where, row)
        try:
            found.append((where, ANSWERED.get(task, dict)(dict(row))))
        except ValueError as error:
            raise ValueError(f"{where}: {task} has {error}") from error
    if not found:
        raise ValueError(f"{path}: no questions")
    return found


def columns_of(task: str) -> str:
    """Return the columns that a task's rows need, in words."""
    if task not in NEEDED:
        return "the columns of the task's data set"
    return " or ".join(f"the columns {', '.join(columns)}" for columns in NEEDED[task])


def has(row: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Return whether a row has all columns; `a.b` is b in a."""
    return all(field(row, column) not in (None, MISSING) for column in columns)


CHOICES = ("choices.text", "choices.label", "answerKey")
NEEDED: dict[str, Sequence[Sequence[str]]] = {
    "boolq": (("question", "passage", "label"), ("question", "passage", "answer")),
    "piqa": (("goal", "sol1", "sol2", "label"),),
    "hellaswag": (("ctx_a", "ctx_b", "activity_label", "endings", "label"), ("query", "choices", "gold")),
    "winogrande": (("sentence", "option1", "option2", "answer"),),
    "arc_easy": (("question", *CHOICES),),
    "arc_challenge": (("question", *CHOICES),),
    "openbookqa": (("question_stem", *CHOICES),),
    "mmlu": (("question", "subject", "choices", "answer"),),
    "gsm8k": (("question", "answer"),),
    "ifeval": (("key", "prompt", "instruction_id_list", "kwargs"),),
}
"""Task -> alternative sets of columns; a row needs all of one set."""
