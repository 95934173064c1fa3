"""What tasks of EleutherAI's lm-evaluation-harness have in common: their names, files and runs."""

# The harness's decorators hide the signature of `simple_evaluate`.
# pyright: reportCallIssue=false, reportAbstractUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

from lm_eval import simple_evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.rows import Row
from cfsp.data.texts import Text, files_label
from cfsp.data.tokens import tokenizer_hash
from cfsp.evaluation.base import Evaluator
from cfsp.evaluation.harness_data import check_data_sets
from cfsp.evaluation.harness_model import HarnessModel
from cfsp.evaluation.harness_names import leaf_tasks, manager, own_examples, subjects
from cfsp.evaluation.harness_noise import without_noise
from cfsp.evaluation.local_splits import (
    by_subject,
    check_examples,
    check_splits,
    check_subjects,
    examples_split,
    with_data,
)
from cfsp.evaluation.local_tasks import Questions, placed_questions, read_questions
from cfsp.machine.process import environment_kept
from cfsp.model.blocks import is_causal
from cfsp.options import hint
from cfsp.records.outcomes import Outcomes, item_name
from cfsp.records.protocols import FILES
from cfsp.records.record import Metric

FEW = ("larger than population", "fewshot samples requested exceeds", "no documents available for sampling")
"""What the harness says where a data set has too few examples."""


@dataclass(frozen=True)
class HarnessTasks(Evaluator):
    """Tasks of the harness, whose prompts, answers and metrics stay its own.

    tasks: names of the harness's tasks or groups.
    shots: examples before each question; null: as many as the task itself has.
    limit: questions per task; null takes all. batch_size: sequences at once.
    files: task -> a local .jsonl (.gz) file with the columns of the task's data set, or split -> file;
        no network is needed then.
    """

    tasks: Sequence[str]
    shots: int | None
    limit: int | None
    batch_size: int
    files: Mapping[str, str | Mapping[str, str]] | None = None

    kind: ClassVar[str]
    """The name of the evaluation, in errors and protocols."""
    known: ClassVar[Sequence[str]] = ()
    """Names to suggest first for a misspelt task."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{self.kind} tasks=[]: expected a list of names of tasks")
        if self.shots is not None:
            check_integer(f"{self.kind} shots", self.shots, least=0)
        check_integer(f"{self.kind} batch_size", self.batch_size, least=1)
        if self.limit is not None:
            check_integer(f"{self.kind} limit", self.limit, least=1)
        index = manager().task_index
        for task in [*self.tasks, *(self.files or {})]:
            if task not in index:
                raise ValueError(
                    f"{self.kind} task {task!r}: lm-eval {version('lm_eval')} has none of that name"
                    f"{hint(task, [*self.known, *index])}"
                )
        for task, given in (self.files or {}).items():
            if not isinstance(given, str):
                check_splits(f"{self.kind} files.{task}", given)
        for task in self.tasks:
            for leaf in leaf_tasks(task):
                self.check_task(task, leaf)

    @abstractmethod
    def check_task(self, task: str, leaf: str) -> None:
        """Raise ValueError if this evaluation cannot measure `leaf`, which `task` stands for."""

    @abstractmethod
    def figures(
        self, task: str, outcome: Mapping[str, Any], wrapped: HarnessModel, protocol: Mapping[str, Any]
    ) -> dict[str, Metric]:
        """Return the metrics of a task that was run."""

    def options(self) -> dict[str, Any]:
        """Return more arguments for the harness."""
        return {}

    def parts(self) -> list[Self]:
        return [replace(self, tasks=[task]) for task in self.tasks]

    def reads(self) -> list[Text]:
        """Return the local files; data that the harness loads from the hub is not checked for overlaps."""
        return [Questions(task, path) for task in self.tasks for path in self.splits(task).values()]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        if not is_causal(model):
            raise ValueError(f"{self.kind} needs a causal language model, not {type(model).__name__}")
        sums = {}
        for task in self.tasks:
            rows = {}
            for split, path in self.splits(task).items():
                if not Path(path).is_file():
                    raise FileNotFoundError(f"{self.kind} file of {task}: {path} is not a file")
                rows[split] = placed_questions(task, Path(path))
                sums[f"{task}:{split}"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
            self.check_rows(task, rows)
            if not rows:
                check_data_sets(self.kind, task)
        paths = [path for task in self.tasks for path in self.splits(task).values()]
        return {
            "measure": self.kind,
            "tasks": [*self.tasks],
            "harness": f"lm-eval {version('lm_eval')}",
            "shots": self.shots,
            "limit": self.limit,
            "files_sha256": sums,
            **({FILES: files_label(paths)} if paths else {}),
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "device": model.device.type,
        }

    def check_rows(self, task: str, rows: Mapping[str, Sequence[Row]]) -> None:
        """Raise ValueError for an unknown subject, or too few examples. rows: of each local split."""
        if task == "mmlu":
            check_subjects([row for some in rows.values() for row in some], [*subjects()])
        shots, own = self.shown_examples(task), own_examples(task)
        if rows and shots and (own is None or examples_split(rows)):
            check_examples(f"{self.kind} task {task!r}", shots, self.splits(task), rows)
        elif own is not None and shots > own:
            raise ValueError(
                f"{self.kind} task {task!r}: {shots} examples before each question, and the task has {own} "
                f"of its own; expected shots={own} at most"
            )

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        protocol = self.protocol(model, tokenizer)
        found = {}
        for task in self.tasks:
            with without_noise():
                # A copy: the harness adds a missing pad token to the tokenizer.
                wrapped = HarnessModel(
                    pretrained=model,
                    tokenizer=copy.deepcopy(tokenizer),
                    backend="causal",
                    batch_size=self.batch_size,
                )
                outcome = self.outcome(task, wrapped)
            found |= self.figures(task, outcome, wrapped, protocol)
        return found

    def outcome(self, task: str, wrapped: HarnessModel) -> Mapping[str, Any]:
        """Return what the harness finds. Raises ValueError if the data set has too few examples."""
        # The harness returns results only where LOCAL_RANK is 0.
        with environment_kept(LOCAL_RANK="0"):
            try:
                outcome = simple_evaluate(
                    model=wrapped,
                    tasks=[self.spec(task)],
                    num_fewshot=self.shots,
                    limit=self.limit,
                    task_manager=manager(),
                    bootstrap_iters=0,  # else a pool of processes resamples for unused metrics too
                    log_samples=True,  # for standard errors and outcomes
                    **self.options(),
                )
            except (AssertionError, ValueError) as error:
                if not any(words in str(error) for words in FEW):
                    raise
                raise ValueError(
                    f"{self.kind} task {task!r}: its data set has fewer than shots="
                    f"{self.shown_examples(task)} examples; expected fewer shots"
                ) from error
        assert outcome is not None, "only other processes than the first get none"
        return outcome

    def splits(self, task: str) -> dict[str, str]:
        """Return split -> local file of a task; empty if its data comes from the hub."""
        given = (self.files or {}).get(task)
        if given is None:
            return {}
        return {"": given} if isinstance(given, str) else dict(given)

    def shown_examples(self, task: str) -> int:
        """Return the number of examples before each question."""
        if self.shots is not None:
            return self.shots
        configs = [manager().task_index[leaf].cfg or {} for leaf in [task, *leaf_tasks(task)]]
        return max(config.get("num_fewshot") or 0 for config in configs)

    def spec(self, task: str) -> str | dict[str, Any]:
        """Return the task for the harness: its name, or its definition with local data."""
        splits = self.splits(task)
        if not splits:
            return task
        rows = {split: read_questions(task, Path(path)) for split, path in splits.items()}
        if task != "mmlu":
            return {"group": f"{task}_local", "task": [with_data(task, rows)]}
        members = [with_data(name, own) for name, own in by_subject(rows, subjects()).items()]
        return {"group": "mmlu_local", "task": members}


def outcomes_of(
    outcome: Mapping[str, Any], leaves: Sequence[str], measure: str, chosen: str
) -> Outcomes | None:
    """Return whether each question was answered correctly; None if the measure is not right or wrong.

    chosen: the harness's filter of answers.
    """
    items, values = [], []
    for leaf in leaves:
        for sample in outcome["samples"].get(leaf, ()):
            if sample["filter"] == chosen and measure in sample:
                items.append(item_name([leaf, sample["doc_hash"]]))
                values.append(sample[measure])
    if not items or any(isinstance(value, list) or value not in (0, 1) for value in values):
        return None
    return Outcomes("correct", items, [*map(int, values)])
