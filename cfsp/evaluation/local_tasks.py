"""Questions: local files of zero-shot tasks, with the columns that the tasks of the harness read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfsp.data.rows import MISSING, check_unicode, field, json_rows, strings
from cfsp.data.texts import Text


@dataclass(frozen=True)
class Questions(Text):
    """A local file of a task, as a text: one document a question."""

    task: str
    path: str

    @property
    def label(self) -> str:
        return self.task

    def documents(self) -> list[str]:
        return [" ".join(strings(row)) for row in read(self.task, Path(self.path))]


def read(task: str, path: Path) -> list[dict[str, Any]]:
    """Rows with the columns that the harness's task reads. Raises ValueError at one that is broken."""
    found = []
    for where, row in json_rows(path):
        if not isinstance(row, Mapping) or not any(has(row, columns) for columns in NEEDED.get(task, ((),))):
            wanted = " or ".join(", ".join(columns) for columns in NEEDED.get(task, (("a JSON object",),)))
            raise ValueError(f"{where}: not a question of {task}; expected {wanted}")
        check_unicode(where, row)
        found.append(CONVERTED.get(task, dict)(dict(row)))
    if not found:
        raise ValueError(f"{path}: no questions")
    return found


def has(row: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether a row has all of the columns; `a.b` is b in a."""
    return all(field(row, column) not in (None, MISSING) for column in columns)


def boolq(row: dict[str, Any]) -> dict[str, Any]:
    """SuperGLUE's label 0 or 1, also of the rows that google/boolq has."""
    return row if "label" in row else {**row, "label": int(row["answer"])}


def hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    """Raw rows, or questions that were put together before: query, choices, gold."""
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
}
"""Columns of a task's rows, one set or the other."""
