"""Local files of zero-shot questions, with the columns that the harness's tasks read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfsp.data.rows import MISSING, check_texts, field, json_rows, strings
from cfsp.data.texts import Text


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
    """Return rows with the columns that the harness's task reads. Raises ValueError for a broken row."""
    found = []
    for where, row in json_rows(path):
        if not isinstance(row, Mapping) or not any(has(row, columns) for columns in NEEDED.get(task, ((),))):
            wanted = " or ".join(", ".join(columns) for columns in NEEDED.get(task, (("a JSON object",),)))
            raise ValueError(f"{where}: not a question of {task}; expected {wanted}")
        check_texts(where, row)
        found.append(CONVERTED.get(task, dict)(dict(row)))
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


def boolq(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with SuperGLUE's label 0 or 1, made of `answer` in rows of google/boolq."""
    return row if "label" in row else {**row, "label": int(row["answer"])}


def hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    """Return a raw row as it is, and a preprocessed one (query, choices, gold) with its label."""
    if "query" not in row:
        return dict(row)
    return {"query": row["query"], "choices": row["choices"], "gold": row["gold"], "label": str(row["gold"])}


CONVERTED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"boolq": boolq, "hellaswag": hellaswag}

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
