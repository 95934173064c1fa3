"""Names of the harness's tasks, of groups of them, and of the subjects of MMLU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from lm_eval.tasks import TaskManager

MMLU_TAGS = {f"mmlu_{part}_tasks" for part in ("stem", "other", "social_sciences", "humanities")}


@cache
def manager() -> TaskManager:
    """Return the harness's index of tasks; cached, because reading it takes seconds."""
    return TaskManager()


def subjects() -> dict[str, str]:
    """Return each subject of MMLU and its task."""
    tasks = sorted(name for name, entry in manager().task_index.items() if entry.tags & MMLU_TAGS)
    return {task.removeprefix("mmlu_"): task for task in tasks}


def leaf_tasks(task: str) -> list[str]:
    """Return the tasks that a name stands for: itself, or all of a group or a tag."""
    entry = manager().task_index[task]
    if task in manager().all_tags:
        return sorted(entry.tags)
    return members((entry.cfg or {})["task"]) if task in manager().all_groups else [task]


def own_examples(task: str) -> float | None:
    """Return the number of examples that a task's definition holds; infinity if a function makes them.

    None: they come from the task's data set.
    """
    configs = [
        (manager().task_index[leaf].cfg or {}).get("fewshot_config") or {} for leaf in leaf_tasks(task)
    ]
    given = [config["samples"] for config in configs if config.get("samples")]
    return min((len(one) if isinstance(one, list) else math.inf for one in given), default=None)


def members(given: object) -> list[str]:
    """Return the tasks in a group's list, whose items are names, or tasks and groups as mappings."""
    if isinstance(given, list):
        return [name for one in given for name in members(one)]
    if isinstance(given, Mapping):
        return members(given["task"])
    return leaf_tasks(given) if isinstance(given, str) and given in manager().task_index else []
