"""Routed task: how much of a routed model's MLPs the rows of a task use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.tasks.base import OwnRows
from cfsp.data.texts import Text
from cfsp.evaluation.base import Evaluator
from cfsp.evaluation.routed_shares import figures_of, listen
from cfsp.evaluation.task import TaskScores
from cfsp.passes.modes import evaluating
from cfsp.records.record import Metric


@dataclass(frozen=True)
class RoutedTask(Evaluator):
    """The figures of `RoutedShares` on the test rows of a task, as the model reads them; padding is left out.

    A batch has rows of similar lengths; its union is that of the places which all of its rows have.
    limit: measure only the first rows of the test split; null: all.
    """

    task: OwnRows
    batches: Sequence[int]
    limit: int | None = None

    def __post_init__(self) -> None:
        for size in self.batches:
            check_integer("routing_task batches", size, least=1)
        if not self.task.one_stack:
            raise ValueError(
                f"routing_task measures models with one stack of blocks, and those of task {self.task.name} "
                "have two; expected another task, such as sst2, or evaluation=[task]"
            )
        _ = self.scores  # only a check

    @property
    def largest(self) -> int:
        return max(self.batches, default=1)

    @cached_property
    def scores(self) -> TaskScores:
        """The same rows, as the task measures them; kept, so that they are encoded once."""
        return TaskScores(self.task, self.largest, self.limit)

    def reads(self) -> Sequence[Text]:
        return self.scores.reads()

    def depends_on(self) -> Sequence[object]:
        return [self, self.task]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        found = self.scores.protocol(model, tokenizer)
        self.check_rows(tokenizer)
        del found["metrics"], found["attention"], found["device"]
        return found | {"measure": "routing_task"}

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return `active_share/sst2`, `active_share_block_3/sst2` and the others of `RoutedShares`."""
        protocol, batches = self.protocol(model, tokenizer), self.rows(tokenizer)
        with evaluating(model):
            uses = listen(model, batches, self.batches, self.task.name)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return {
            f"{name}/{self.task.name}": Metric(value, None, tokens, "lower", protocol)
            for name, value in figures_of(model, uses, self.batches).items()
        }

    def check_rows(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the rows do not fill one batch."""
        count = len(self.scores.encoded(tokenizer).examples)
        if count < self.largest:
            raise ValueError(
                f"routing_task batches={[*self.batches]} with {count} rows of task {self.task.name}; "
                f"expected at least {self.largest} rows"
            )

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Tensor]]:
        """Return the rows in batches, in the order of their lengths. [rows, tokens] each"""
        examples = sorted(self.scores.encoded(tokenizer).examples, key=lambda one: len(one["input_ids"]))
        collate, size = self.task.collator(tokenizer), self.largest
        return [collate(examples[first : first + size]) for first in range(0, len(examples), size)]
