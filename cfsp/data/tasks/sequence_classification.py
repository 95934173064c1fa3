"""Sequence classification: predict the label of a text or of a pair of texts, or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_choice
from cfsp.data.labelled_rows import LabelledRows, text_in, value_in
from cfsp.data.tasks.base import Encoded, LabelledTask, Score
from cfsp.data.tasks.metrics import OF_LABELS, OF_NUMBERS, Metric, mean, scored
from cfsp.data.windows import Example


@dataclass(frozen=True)
class LabelledTexts:
    """One text or two, and the index of their label, or the number if there are no labels."""

    texts: tuple[str, ...]
    label: float | int


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(LabelledTask):
    """Predict the label of a text, or of a pair of texts (GLUE, Wang et al. 2018, arXiv:1804.07461).

    text, text_pair, label: names of the columns.
    labels: names of the labels; rows have these names, or indices from 0 on. null: the label is a number
        (STS-B), which is the model's only output.
    metrics: any of accuracy, f1 (of label 1), f1_macro, matthews; for numbers pearson, spearman.
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
        if not self.metrics:
            raise ValueError(f"task.metrics=[]: expected one or more of {', '.join(self.known)}")
        for metric in self.metrics:
            check_choice("task.metrics", metric, self.known)
        if "f1" in self.metrics and len(self.choices) != 2:
            raise ValueError(f"task.metrics: f1 is of two labels, not {len(self.choices)}; expected f1_macro")

    @property
    def choices(self) -> Sequence[str]:
        return [self.label] if self.labels is None else self.labels

    @property
    def known(self) -> Mapping[str, Metric]:
        """Name -> metric of such labels."""
        return OF_NUMBERS if self.labels is None else OF_LABELS

    def items(self, rows: LabelledRows) -> list[LabelledTexts]:
        columns = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        return [
            LabelledTexts(tuple(text_in(where, row, column) for column in columns), self.right(where, row))
            for where, row in rows.rows()
        ]

    def right(self, where: str, row: Mapping[str, Any]) -> float | int:
        """Return the label of a row. Raises ValueError if it is missing, or not one of the task's."""
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

    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[LabelledTexts]) -> Encoded:
        first = [item.texts[0] for item in items]
        second = None if self.text_pair is None else [item.texts[1] for item in items]
        coded = tokenizer(first, second, truncation=True, max_length=self.window, verbose=False)
        keys = [key for key in ("input_ids", "token_type_ids") if key in coded]
        examples: list[Example] = []
        for row, item in enumerate(items):
            labels: list[Any] = [item.label]  # a float if the labels are numbers
            examples.append({key: coded[key][row] for key in keys} | {"labels": labels})
        cut = sum(bool(one.overflowing) for one in coded.encodings or [])
        return Encoded(examples, [*range(len(items))], [None] * len(items), cut=cut)

    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return output.logits, inputs["labels"]

    def cost(self, logits: Tensor, right: Tensor) -> Tensor:
        """Return the cross-entropy, for numbers the squared error, summed over decisions. []"""
        if self.labels is None:
            return F.mse_loss(logits.squeeze(1), right.float(), reduction="sum")
        return super().cost(logits, right)

    def answers(
        self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[LabelledTexts]
    ) -> list[float | int]:
        return [one.item() if self.labels is None else int(one.argmax()) for one in outputs]

    def scores(self, answers: Sequence[Any], items: Sequence[LabelledTexts]) -> dict[str, Score]:
        right = [item.label for item in items]
        hits = [float(said == label) for said, label in zip(answers, right, strict=True)]
        return {
            name: mean(hits) if name == "accuracy" else scored(self.known[name], right, answers)
            for name in self.metrics
        }


def number_in(where: str, column: str, value: Any) -> float:
    """Return a label that is a number. Raises ValueError if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {column!r} is {value!r}; expected a finite number")
    return number
