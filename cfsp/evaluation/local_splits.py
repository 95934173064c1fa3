"""Local files as the splits of a task: which one is measured, and which one gives the examples."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import datasets

from cfsp.data.rows import Row
from cfsp.options import hint

MEASURED = ("test", "validation")
EXAMPLES = ("train", "dev", "validation")
SPLITS = ("train", "dev", "validation", "test")


def measured_split(splits: Collection[str]) -> str | None:
    """Return the split that is measured; a file without a split has the name ''."""
    return next((split for split in ("", *MEASURED) if split in splits), None)


def examples_split(splits: Collection[str]) -> str | None:
    """Return the split that examples are taken from, never the one that is measured."""
    others = [split for split in EXAMPLES if split != measured_split(splits)]
    return next((split for split in others if split in splits), None)


def check_splits(what: str, splits: Collection[str]) -> None:
    """Raise ValueError for a split of an unknown name, or if none is measured. what: the option."""
    for split in splits:
        if split not in SPLITS:
            raise ValueError(
                f"{what} has split {split!r}; expected some of {', '.join(SPLITS)}{hint(split, SPLITS)}"
            )
    if measured_split(splits) is None:
        given = ", ".join(splits) or "no split"
        raise ValueError(f"{what} has {given}; expected test or validation too, the questions to measure")


def check_subjects(rows: Iterable[Row], subjects: Sequence[str]) -> None:
    """Raise ValueError for a question of MMLU whose subject the harness does not know."""
    for where, row in rows:
        if row["subject"] not in subjects:
            raise ValueError(
                f"{where}: subject={row['subject']!r}; expected one of the {len(subjects)} of MMLU"
                f"{hint(row['subject'], subjects)}"
            )


def check_examples(
    what: str, shots: int, files: Mapping[str, str], rows: Mapping[str, Sequence[Row]]
) -> None:
    """Raise ValueError unless files have enough examples that are not the questions themselves.

    what: the task, for errors. files, rows: of each split. Examples and questions of MMLU meet by subject.
    """
    measured, examples = measured_split(rows), examples_split(rows)
    if examples is None or measured is None:
        raise ValueError(
            f"{what}: {shots} examples before each question, and no file of them; expected shots=0, or files "
            f"of two splits: {{test: FILE, train: FILE}}"
        )
    questions, shown = keys_of(rows[measured]), keys_of(rows[examples])
    if questions <= shown:
        raise ValueError(
            f"{what}: all questions of {files[measured]} are in {files[examples]}, so their answers would be "
            "among the examples; expected another file of examples, or shots=0"
        )
    there = counts_of(rows[examples])
    for subject in counts_of(rows[measured]):
        if there.get(subject, 0) < shots:
            of = f" of subject {subject}" if subject else ""
            raise ValueError(
                f"{what}: {shots} examples before each question, and {files[examples]} has "
                f"{there.get(subject, 0)}{of}; expected at least {shots} rows, or fewer shots"
            )


def keys_of(rows: Iterable[Row]) -> set[str]:
    """Return each row as text, to compare rows."""
    return {json.dumps(row, sort_keys=True) for _, row in rows}


def counts_of(rows: Iterable[Row]) -> dict[str, int]:
    """Return subject -> number of rows; the subject is '' where a task has none."""
    found: dict[str, int] = {}
    for _, row in rows:
        subject = str(row.get("subject", ""))
        found[subject] = found.get(subject, 0) + 1
    return found


def by_subject(
    rows: Mapping[str, list[dict[str, Any]]], names: Mapping[str, str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return task -> split -> rows, of each subject with questions to measure. names: subject -> task."""
    measured = measured_split(rows)
    found = {}
    for subject, name in sorted(names.items()):
        own = {
            split: [row for row in all_rows if row["subject"] == subject] for split, all_rows in rows.items()
        }
        own = {split: some for split, some in own.items() if some}
        if measured in own:
            found[name] = own
    return found


def with_data(task: str, rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return a registered task with its data set replaced. A split without a name is measured."""

    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {split or "evaluated": datasets.Dataset.from_list(found) for split, found in rows.items()}

    spec = {
        "task": task,
        "custom_dataset": load,
        "training_split": None,
        "validation_split": None,
        "test_split": measured_split(rows) or "evaluated",
        "fewshot_split": examples_split(rows),
    }
    first = next(iter(next(iter(rows.values()))), {})
    if task == "hellaswag" and "gold" in first:
        spec["process_docs"] = None  # these questions are preprocessed already
    return spec
