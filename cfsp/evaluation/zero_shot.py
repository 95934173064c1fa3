"""Zero-shot tasks, by EleutherAI's lm-evaluation-harness, on the model in memory."""

# The harness's decorators hide the signatures of `simple_evaluate` and of HFLM's base.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportAbstractUsage=false

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any

import datasets
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp import bars
from cfsp.checks import check_integer
from cfsp.data.texts import Text
from cfsp.evaluation.base import Evaluator
from cfsp.evaluation.local_tasks import Questions, read_questions
from cfsp.machine.process import environment_kept
from cfsp.model.blocks import is_causal
from cfsp.options import hint
from cfsp.records.record import Metric

PAPERS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
    "mmlu": "acc",
}
"""Task -> the measure that the pruning papers report (LLM-Pruner's issue 25)."""

MEASURES = ("acc", "acc_norm")

MMLU_TAGS = {f"mmlu_{part}_tasks" for part in ("stem", "other", "social_sciences", "humanities")}


@dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Accuracy with and without normalisation by length, as the harness defines it.

    tasks: names of the harness's tasks or groups; every task must have an accuracy.
    files: task -> a local .jsonl (.gz) file with the columns of the task's data set, or split -> file;
        no network is needed then. Prompts, answers and metrics stay the harness's own.
    shots: examples before each question. limit: questions per task; null takes all.
    """

    tasks: Sequence[str]
    shots: int
    limit: int | None
    batch_size: int
    files: Mapping[str, str | Mapping[str, str]] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("zero_shot tasks=[]: expected a list of names of tasks")
        check_integer("zero_shot shots", self.shots, least=0)
        check_integer("zero_shot batch_size", self.batch_size, least=1)
        if self.limit is not None:
            check_integer("zero_shot limit", self.limit, least=1)
        known = manager().task_index
        for task in [*self.tasks, *(self.files or {})]:
            if task not in known:
                raise ValueError(
                    f"zero_shot task {task!r}: lm-eval {version('lm_eval')} has none of that name"
                    f"{hint(task, [*PAPERS, *known])}"
                )

        for task in self.tasks:
            for leaf in leaf_tasks(task):
                if not has_accuracy(leaf):
                    raise ValueError(
                        f"zero_shot task {task!r}: {leaf!r} has neither acc nor acc_norm; expected a task of "
                        "multiple choice"
                    )

    def parts(self) -> list[ZeroShot]:
        return [replace(self, tasks=[task]) for task in self.tasks]

    def reads(self) -> list[Text]:
        """Return the local files; data that the harness loads from the hub is not checked for overlaps."""
        return [Questions(task, path) for task in self.tasks for path in self.splits(task).values()]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        if not is_causal(model):
            raise ValueError(f"zero_shot needs a causal language model, not {type(model).__name__}")
        sums = {}
        for task in self.tasks:
            for split, path in self.splits(task).items():
                if not Path(path).is_file():
                    raise FileNotFoundError(f"zero_shot file of {task}: {path} is not a file")
                read_questions(task, Path(path))
                sums[f"{task}:{split}"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        return {
            "measure": "zero_shot",
            "tasks": [*self.tasks],
            "harness": f"lm-eval {version('lm_eval')}",
            "shots": self.shots,
            "limit": self.limit,
            "files_sha256": sums,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "device": model.device.type,
        }

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return `acc/<task>` and, if the task has it, `acc_norm/<task>`.

        protocol["papers"] is true for the one that the pruning papers report.
        """
        protocol = self.protocol(model, tokenizer)
        # A copy: the harness adds a missing pad token to the tokenizer.
        wrapped = Shown(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=self.batch_size,
        )
        found = {}
        for task in self.tasks:
            # The harness returns results only where LOCAL_RANK is 0.
            with environment_kept(LOCAL_RANK="0"), errors_alone("lm_eval"):
                outcome = simple_evaluate(
                    model=wrapped,
                    tasks=[self.spec(task)],
                    num_fewshot=self.shots,
                    limit=self.limit,
                    task_manager=manager(),
                    bootstrap_iters=0,  # else a pool of processes resamples for unused metrics too
                    log_samples=True,  # for the standard errors
                )
            assert outcome is not None, "only other processes than the first get none"
            found |= task_metrics(task, with_errors(outcome), protocol)
        return found

    def splits(self, task: str) -> dict[str, str]:
        """Return split -> local file of a task; empty if its data comes from the hub."""
        given = (self.files or {}).get(task)
        if given is None:
            return {}
        return {"": given} if isinstance(given, str) else dict(given)

    def spec(self, task: str) -> str | dict[str, Any]:
        """Return the task for the harness: its name, or its definition with local data."""
        splits = self.splits(task)
        if not splits:
            return task
        rows = {split: read_questions(task, Path(path)) for split, path in splits.items()}
        if task != "mmlu":
            return {"group": f"{task}_local", "task": [with_data(task, rows)]}
        members = []
        for name in sorted(name for name, entry in manager().task_index.items() if entry.tags & MMLU_TAGS):
            subject = name.removeprefix("mmlu_")
            own = {
                split: [row for row in all_rows if row["subject"] == subject]
                for split, all_rows in rows.items()
            }
            if any(own.values()):
                members.append(with_data(name, own))
        return {"group": "mmlu_local", "task": members}


@contextmanager
def errors_alone(name: str) -> Iterator[None]:
    """Let a logger report errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Shown(HFLM):
    """The harness's model, with the progress bar of this package."""

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **options: Any) -> Any:
        with bars.task("zero-shot", "answer", len(requests)) as self.shown:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

    def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
        self.shown.advance(len(inps))
        return super()._model_call(inps, *args, **options)


@cache
def manager() -> TaskManager:
    """Return the harness's index of tasks; cached, because reading it takes seconds."""
    return TaskManager()


def leaf_tasks(task: str) -> list[str]:
    """Return the tasks that a name stands for: itself, or all of a group or a tag."""
    entry = manager().task_index[task]
    if task in manager().all_tags:
        return sorted(entry.tags)
    return members((entry.cfg or {})["task"]) if task in manager().all_groups else [task]


def members(given: object) -> list[str]:
    """Return the tasks in a group's list, whose items are names, or tasks and groups as mappings."""
    if isinstance(given, list):
        return [name for one in given for name in members(one)]
    if isinstance(given, Mapping):
        return members(given["task"])
    return leaf_tasks(given) if isinstance(given, str) and given in manager().task_index else []


def has_accuracy(task: str) -> bool:
    """Return whether a task has one of `MEASURES`."""
    config = manager().task_index[task].cfg or {}
    measures = config.get("metric_list")
    if measures is None:  # the harness's defaults by kind of output
        return config.get("output_type") in ("multiple_choice", "loglikelihood")
    return any(one["metric"] in MEASURES for one in measures)


def with_data(task: str, rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return a registered task with its data set replaced. A split without a name is evaluated."""

    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {split or "evaluated": datasets.Dataset.from_list(found) for split, found in rows.items()}

    few = next((split for split in ("train", "dev", "validation") if split in rows), None)
    evaluated = next((split for split in ("", "test", "validation") if split in rows), "")
    spec = {
        "task": task,
        "custom_dataset": load,
        "training_split": None,
        "validation_split": None,
        "test_split": evaluated or "evaluated",
        "fewshot_split": few,
    }
    first = next(iter(next(iter(rows.values()))), {})
    if task == "hellaswag" and "query" in first:
        spec["process_docs"] = None  # these questions are preprocessed already
    return spec


def with_errors(outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the harness's figures with standard errors of their means, if there are two questions."""
    for leaf, figures in outcome["results"].items():
        samples = [one for one in outcome["samples"].get(leaf, ()) if one["filter"] == "none"]
        for measure in MEASURES:
            values = [float(one[measure]) for one in samples if measure in one]
            if len(values) > 1:
                figures[f"{measure}_stderr,none"] = stdev(values) / math.sqrt(len(values))
    return outcome


def task_metrics(task: str, outcome: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the harness's figures of one task, or of all questions of a group together."""
    sizes = {leaf: count["effective"] for leaf, count in outcome["n-samples"].items()}
    whole = sum(sizes.values())
    versions = sorted({str(outcome["versions"].get(leaf)) for leaf in sizes})
    found = {}
    for measure in MEASURES:
        rows = [(sizes[leaf], outcome["results"][leaf]) for leaf in sizes]
        if not all(f"{measure},none" in row for _, row in rows):
            continue
        value = sum(size * row[f"{measure},none"] for size, row in rows) / whole
        errors = [size * row[f"{measure}_stderr,none"] for size, row in rows if size > 1]
        known = len(errors) == len(rows) and all(isinstance(error, float) for error in errors)
        stderr = math.hypot(*errors) / whole if known else None
        own = {"task_version": versions, "papers": PAPERS.get(task) == measure}
        found[f"{measure}/{task}"] = Metric(value, stderr, whole, "higher", {**protocol, **own})
    return found
