"""Sequence classification: a text, or a pair of texts, gets one of a few labels, or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_choice
from cfsp.data.tables import Table, text_in, value_in
from cfsp.data.tasks.base import Encoded, LabelledTask, Score
from cfsp.data.tasks.metrics import OF_LABELS, OF_NUMBERS, mean, scored


@dataclass(frozen=True)
class Item:
    """One text, or two, and the number of the label; where there are no labels, the number itself."""

    texts: tuple[str, ...]
    label: float | int


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(LabelledTask):
    """Give a text, or a pair of texts, its label (GLUE, Wang et al. 2018, arXiv:1804.07461).

    text, text_pair, label: the columns. labels: their names; rows hold these names, or their numbers from 0
        on. null: the label is a number (STS-B), and the model's only output is to be that number.
    metrics: any of accuracy, f1 (of label 1), f1_macro, matthews; of numbers pearson, spearman.
    """

    head = "sequence_classification"
    text: str
    text_pair: str | None
    label: str
    labels: Annotated[list[str] | None, "a list of two or more names, or null for numbers"]
    metrics: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and (len(self.labels) < 2 or len({*self.labels}) < len(self.labels)):
            raise ValueError(
                f"task.labels={self.labels}: expected two or more names, each once; null for numbers"
            )
        for metric in self.metrics:
            check_choice("task.metrics", metric, self.known)
        if "f1" in self.metrics and len(self.labels) != 2:
            raise ValueError(f"task.metrics: f1 is of two labels, not {len(self.labels)}; expected f1_macro")

    @property
    def choices(self) -> Sequence[str]:
        return [self.label] if self.labels is None else self.labels

    @property
    def known(self) -> Mapping[str, Any]:
        return OF_NUMBERS if self.labels is None else OF_LABELS

    def items(self, table: Table) -> list[Item]:
        columns = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        return [
            Item(tuple(text_in(where, row, column) for column in columns), self.right(where, row))
            for where, row in table.rows()
        ]

    def right(self, where: str, row: Mapping[str, Any]) -> float | int:
        """The label of a row. Raises ValueError for none, or one that is not of the task's."""
        value = value_in(where, row, self.label)
        if self.labels is None:
            return number_in(where, self.label, value)
        if str(value) in self.labels:
            return [*self.labels].index(str(value))
        if str(value).isdecimal() and int(value) < len(self.labels):
            return int(value)
        raise ValueError(
            f"{where}: {self.label!r} is {value!r}; expected one of {', '.join(self.labels)}, or a number "
            f"from 0 to {len(self.labels) - 1}"
        )

    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> Encoded:
        texts = [[item.texts[place] for item in items] for place in range(len(items[0].texts))]
        coded = tokenizer(*texts, truncation=True, max_length=self.window, verbose=False)
        keys = [key for key in ("input_ids", "token_type_ids") if key in coded]
        examples = [
            {key: coded[key][row] for key in keys} | {"labels": [item.label]}
            for row, item in enumerate(items)
        ]
        cut = sum(bool(one.overflowing) for one in coded.encodings)
        return Encoded(examples, [*range(len(items))], [None] * len(items), cut=cut)

    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return output.logits, inputs["labels"]

    def cost(self, logits: Tensor, right: Tensor) -> Tensor:
        """Cross-entropy, their sum in nats; of numbers the squared error. []"""
        if self.labels is None:
            return F.mse_loss(logits.squeeze(1), right.float(), reduction="sum")
        return super().cost(logits, right)

    def answers(self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[Item]) -> list[float | int]:
        return [one.item() if self.labels is None else int(one.argmax()) for one in outputs]

    def scores(self, answers: Sequence[Any], items: Sequence[Item]) -> dict[str, Score]:
        right = [item.label for item in items]
        hits = [float(said == label) for said, label in zip(answers, right, strict=True)]
        return {
            name: mean(hits) if name == "accuracy" else scored(self.known[name], right, answers)
            for name in self.metrics
        }


def number_in(where: str, column: str, value: Any) -> float:
    """A label that is a number. Raises ValueError if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {column!r} is {value!r}; expected a finite number")
    return number
