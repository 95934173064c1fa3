"""The metrics of a task on its test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.tasks.base import Encoded, OwnRows
from cfsp.data.texts import Text
from cfsp.data.windows import fingerprint_examples
from cfsp.evaluation.base import Evaluator
from cfsp.passes.modes import evaluating
from cfsp.records.record import Metric


@dataclass(frozen=True)
class TaskScores(Evaluator):
    """The metrics of a task, each named `metric/task`.

    limit: measure only the first rows of the test split; null: all.
    """

    task: OwnRows
    batch_size: int
    limit: int | None = None

    def __post_init__(self) -> None:
        check_integer("evaluation task batch_size", self.batch_size, least=1)
        if self.limit is not None:
            check_integer("evaluation task limit", self.limit, least=1)
        if self.task.test is None:
            raise ValueError(
                f"task {self.task.name} has no test split to be judged on; expected task.test.paths=FILE, or "
                "evaluation=[]"
            )

    @property
    def test(self) -> LabelledRows:
        """The rows to measure on."""
        assert self.task.test is not None, "the constructor refuses it"
        return self.task.test

    def reads(self) -> list[Text]:
        return [self.test]

    def depends_on(self) -> Sequence[object]:
        return [self, self.task]

    @cached_property
    def items(self) -> Sequence[Any]:
        """The items, read once: both models are measured on the same rows, even if the file changes."""
        return self.task.items(self.test)[: self.limit]

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Return the items as examples. The last ones are kept: a run asks for them several times."""
        held = vars(self).get("_encoded")
        if held is None or held[0] is not tokenizer:
            held = vars(self)["_encoded"] = (tokenizer, self.task.encode(tokenizer, self.items))
        return held[1]

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what the metrics depend on, and which there are; each metric's own protocol lacks these."""
        self.task.check(model, tokenizer, "evaluation")
        return {
            "measure": "task",
            "task": self.task.name,
            "text": self.test.label,
            "text_sha256": hashlib.sha256(repr(self.items).encode()).hexdigest()[:16],
            "tokens_sha256": fingerprint_examples([self.encoded(tokenizer).examples]),
            "window": self.task.window,
            **self.task.protocol,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "device": model.device.type,
            "metrics": [*self.task.metrics],
        }

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        protocol = self.protocol(model, tokenizer)
        del protocol["metrics"]  # so that tables compare runs with other metrics beside this one
        encoded = self.encoded(tokenizer)
        answers = self.task.answers(self.outputs(model, tokenizer, encoded.examples), encoded, self.items)
        return {
            f"{name}/{self.task.name}": Metric(score.value, score.stderr, score.n, score.better, protocol)
            for name, score in self.task.scores(answers, self.items).items()
        }

    @torch.no_grad()
    def outputs(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Any]
    ) -> list[Tensor]:
        """Return the model's output for each example. A batch has examples of similar lengths. Each [choices]

        Raises ValueError if an output is NaN or infinite.
        """
        collate = self.task.collator(tokenizer)
        found: dict[int, Tensor] = {}
        order = sorted(range(len(examples)), key=lambda row: len(examples[row]["input_ids"]))
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        with evaluating(model):
            for rows in bar(batches, f"task {self.task.name}", "batch"):
                batch = collate([examples[row] for row in rows])
                inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
                found |= dict(zip(rows, self.task.respond(model, inputs), strict=True))
        return [found[row] for row in range(len(examples))]
