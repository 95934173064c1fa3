"""Data sets of the harness's tasks: whether they can be loaded, asked before anything costly."""

from __future__ import annotations

from functools import cache
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from cfsp.evaluation.harness_names import leaf_tasks, manager
from cfsp.evaluation.local_tasks import columns_of

UNREACHABLE = (OSError, ValueError, RuntimeError, DatasetsError)
"""What datasets raises for a data set that is not there or not to be read, whatever the network does."""

PLACED = ("data_files", "data_dir", "revision")
"""Options of a task that say where its data set lies."""


def check_data_sets(kind: str, task: str) -> None:
    """Raise ValueError if a task of the hub cannot be loaded, with the file that it would take.

    kind: of the evaluation, for errors.
    """
    by_place = {}
    for leaf in leaf_tasks(task):
        config = manager().task_index[leaf].cfg or {}
        by_place.setdefault(config.get("dataset_path"), leaf)  # parts of one data set lie together
    for place, leaf in by_place.items():
        try:
            if isinstance(place, str):
                look_up(leaf)
        except UNREACHABLE as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{kind} task {task!r}: its data set {place} cannot be loaded ({reason}); expected a "
                f"network, or evaluation.{kind}.files.{task}=FILE, a .jsonl (.gz) whose rows have "
                f"{columns_of(task)}"
            ) from error


@cache
def look_up(leaf: str) -> None:
    """Find a task's data set without its rows; cached, because it asks the hub."""
    config: dict[str, Any] = manager().task_index[leaf].cfg or {}
    options = config.get("dataset_kwargs") or {}
    given = {name: options[name] for name in PLACED if name in options}
    datasets.load_dataset_builder(config["dataset_path"], config.get("dataset_name"), **given)
