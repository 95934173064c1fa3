"""Generation: tasks whose answers the model writes, by EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import mean, stdev
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.chats import has_template
from cfsp.evaluation.answers import check_room, cut_remarks
from cfsp.evaluation.harness import HarnessTasks, outcomes_of
from cfsp.evaluation.harness_model import HarnessModel, longest_of
from cfsp.evaluation.harness_names import leaf_tasks, manager
from cfsp.passes.writing import ends_of
from cfsp.records.record import Metric

NEEDS = {"ifeval": ("langdetect", "immutabledict", "nltk")}
"""Task -> packages that the harness checks its answers with."""
NLTK_DATA = {"ifeval": "tokenizers/punkt_tab"}
"""Task -> data of NLTK that the harness checks its answers with, which no package holds."""
USUAL = 256
"""New tokens of a task that names no number; the harness's own."""


@dataclass(frozen=True)
class Generation(HarnessTasks):
    """Scores of written answers, by greedy decoding, with the answers' lengths.

    chat: write questions by the tokenizer's chat template; the examples before them are turns of the chat.
    new_tokens: most tokens of an answer; null: as many as the task has. An answer that is longer is cut.
    """

    chat: bool = True
    new_tokens: int | None = None

    kind: ClassVar[str] = "generation"
    known: ClassVar[Sequence[str]] = ("gsm8k", "ifeval")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_tokens is not None:
            check_integer("generation new_tokens", self.new_tokens, least=1)

    def check_task(self, task: str, leaf: str) -> None:
        config = manager().task_index[leaf].cfg or {}
        if config.get("output_type") != "generate_until":
            raise ValueError(
                f"generation task {task!r}: {leaf!r} writes no answer; expected a generate_until task "
                "(evaluation=zero_shot takes those of multiple choice)"
            )
        if (config.get("generation_kwargs") or {}).get("do_sample"):
            raise ValueError(f"generation task {task!r}: {leaf!r} draws its answers; expected a greedy one")
        if lacking := [name for name in NEEDS.get(leaf, ()) if find_spec(name) is None]:
            raise ValueError(
                f"generation task {task!r}: {', '.join(lacking)} not installed; expected pip install "
                "'cfsp[ifeval]'"
            )

    def options(self) -> dict[str, Any]:
        longest = {} if self.new_tokens is None else {"gen_kwargs": {"max_gen_toks": self.new_tokens}}
        return longest | {"apply_chat_template": self.chat, "fewshot_as_multiturn": self.chat}

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        found = super().protocol(model, tokenizer)
        if self.chat and not has_template(tokenizer):
            raise ValueError(
                "generation chat=true: the tokenizer has no chat template; expected chat=false, or a "
                "model with one"
            )
        for task in self.tasks:
            for leaf in leaf_tasks(task):
                check_nltk(task, leaf)
                check_room(model, self.longest(leaf), f"generation task {leaf!r}: new_tokens")
        template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        return found | {
            "chat": self.chat,
            "template_sha256": template if self.chat else None,
            "new_tokens": self.new_tokens,
            "decoding": "greedy",
            "ends": sorted(ends_of(model, tokenizer)),
        }

    def longest(self, leaf: str) -> int:
        """Return the most new tokens of a task."""
        config = manager().task_index[leaf].cfg or {}
        return self.new_tokens or longest_of(config.get("generation_kwargs") or {}) or USUAL

    def figures(
        self, task: str, outcome: Mapping[str, Any], wrapped: HarnessModel, protocol: Mapping[str, Any]
    ) -> dict[str, Metric]:
        """Return `<measure>/<task>`, with @filter if the task filters answers, and what was written.

        `answer_tokens` is the mean length of the answers, `cut_answers` the fraction that reached its limit,
        `cut_prompts` the fraction of prompts that lost their beginnings to the model's window.
        """
        leaves = [*outcome["n-samples"]]
        own = {**protocol, "task_version": sorted({str(outcome["versions"].get(leaf)) for leaf in leaves})}
        found = score_metrics(task, leaves, outcome, own)
        lengths = {
            "answer_tokens": [float(answer.tokens) for answer in wrapped.written],
            "cut_answers": [float(not answer.ended) for answer in wrapped.written],
            "cut_prompts": [float(not answer.whole_prompt) for answer in wrapped.written],
        }
        for name, values in lengths.items():
            found[f"{name}/{task}"] = Metric(mean(values), error_of(values), len(values), "lower", own)
        return found

    def remarks(self, metrics: Mapping[str, Metric], model: PreTrainedModel) -> list[str]:
        found = []
        for task in self.tasks:
            limits = sorted({self.longest(leaf) for leaf in leaf_tasks(task)})
            found += cut_remarks(self.kind, task, metrics, " or ".join(map(str, limits)))
        return found


def check_nltk(task: str, leaf: str) -> None:
    """Raise ValueError if NLTK lacks data that checks the answers, which would be written in vain."""
    if leaf not in NLTK_DATA:
        return
    try:
        import_module("nltk").data.find(NLTK_DATA[leaf])
    except LookupError as error:
        name = NLTK_DATA[leaf].split("/")[-1]
        raise ValueError(
            f"generation task {task!r}: NLTK has no {name}, which checks the answers; expected python -m "
            f"nltk.downloader {name} before, with a network, or NLTK_DATA=FOLDER that holds {NLTK_DATA[leaf]}"
        ) from error


def score_metrics(
    task: str, leaves: Sequence[str], outcome: Mapping[str, Any], protocol: Mapping[str, Any]
) -> dict[str, Metric]:
    """Return a metric per measure and filter that is a mean over questions, or over parts of them.

    Raises:
        ValueError: the task has none.
    """
    samples = [sample for leaf in leaves for sample in outcome["samples"][leaf]]
    found = {}
    for measure, chosen in dict.fromkeys(
        (measure, one["filter"]) for one in samples for measure in one["metrics"]
    ):
        values = [one[measure] for one in samples if one["filter"] == chosen and measure in one]
        parts = [value if isinstance(value, list) else [value] for value in values]
        if not all(isinstance(part, bool | int | float) for value in parts for part in value):
            continue  # the pieces of a corpus score
        value, error, n = mean_of_parts(parts)
        higher = all(outcome["higher_is_better"][leaf].get(measure, True) for leaf in leaves)
        better: Literal["lower", "higher"] = "higher" if higher else "lower"
        name = f"{measure}/{task}" + ("" if chosen == "none" else f"@{chosen}")
        kept = outcomes_of(outcome, leaves, measure, chosen)
        found[name] = Metric(value, error, n, better, protocol, outcomes=kept)
    if not found:
        raise ValueError(f"generation task {task!r}: no measure is a mean over questions; expected one")
    return found


def mean_of_parts(parts: Sequence[Sequence[float]]) -> tuple[float, float | None, int]:
    """Return the mean over all parts, its standard error with questions as clusters, and their number."""
    n = sum(map(len, parts))
    value = math.fsum(part for one in parts for part in one) / n
    count = len(parts)
    if count < 2:
        return value, None, n
    apart = math.fsum((sum(one) - value * len(one)) ** 2 for one in parts)
    return value, math.sqrt(apart * count / (count - 1)) / n, n


def error_of(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean; None of a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
