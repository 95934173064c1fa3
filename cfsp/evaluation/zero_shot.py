"""Zero-shot tasks, by EleutherAI's lm-evaluation-harness, on the model in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, ClassVar

from transformers import PreTrainedModel

from cfsp.evaluation.harness import HarnessTasks, outcomes_of
from cfsp.evaluation.harness_model import HarnessModel
from cfsp.evaluation.harness_names import manager
from cfsp.model.blocks import max_positions
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


@dataclass(frozen=True)
class ZeroShot(HarnessTasks):
    """Accuracy with and without normalisation by length, as the harness defines it.

    Every task must have an accuracy. The choices of a question, and questions with the same examples before
    them, are read with their common beginning once.
    """

    shots: int

    kind: ClassVar[str] = "zero_shot"
    known: ClassVar[Sequence[str]] = (*PAPERS,)

    def check_task(self, task: str, leaf: str) -> None:
        if not has_accuracy(leaf):
            raise ValueError(
                f"zero_shot task {task!r}: {leaf!r} has neither acc nor acc_norm; expected a task of "
                "multiple choice (evaluation=generation takes those that write an answer)"
            )

    def figures(
        self, task: str, outcome: Mapping[str, Any], wrapped: HarnessModel, protocol: Mapping[str, Any]
    ) -> dict[str, Metric]:
        """Return `acc/<task>`, if the task has it `acc_norm/<task>`, and `cut_prompts/<task>`.

        protocol["papers"] is true for the one that the pruning papers report. `cut_prompts` is the share of
        answers whose questions lost their beginnings to the model's window.
        """
        found = task_metrics(task, with_errors(outcome), protocol)
        own = {**next(iter(found.values())).protocol, "papers": False}
        share = Metric(wrapped.cut / wrapped.asked, None, wrapped.asked, "lower", own)
        return {**found, f"cut_prompts/{task}": share}

    def remarks(self, metrics: Mapping[str, Metric], model: PreTrainedModel) -> list[str]:
        positions = max_positions(model)
        window = "the model's window" if positions is None else f"{positions} tokens"
        shares = {task: metrics[f"cut_prompts/{task}"] for task in self.tasks}
        return [
            f"zero_shot {task}: {one.value * one.n:.0f} of {one.n} answers do not fit into {window}; the "
            "beginnings of their questions were left out"
            for task, one in shares.items()
            if one.value
        ]


def has_accuracy(task: str) -> bool:
    """Return whether a task has one of `MEASURES`."""
    config = manager().task_index[task].cfg or {}
    measures = config.get("metric_list")
    if measures is None:  # the harness's defaults by kind of output
        return config.get("output_type") in ("multiple_choice", "loglikelihood")
    return any(one["metric"] in MEASURES for one in measures)


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
        kept = outcomes_of(outcome, [*sizes], measure, "none")
        found[f"{measure}/{task}"] = Metric(
            value, stderr, whole, "higher", {**protocol, **own}, outcomes=kept
        )
    return found
