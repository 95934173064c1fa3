"""The training data and the calibration of a task: its own rows as examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.calibration import Batch, Calibration
from cfsp.data.examples import Split, TrainingData
from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.tasks.base import OwnRows, TaskCollator
from cfsp.data.texts import Text
from cfsp.data.windows import Example


@dataclass(frozen=True)
class TaskExamples(TrainingData):
    """The training rows of a task, split into a training and a held-out part.

    held_out: number of rows held out for early stopping (0: none), drawn by seed.
    limit: most rows to train on; null: all. The seed decides which are left out.
    """

    task: OwnRows
    held_out: int
    limit: int | None
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("held_out", 0), ("seed", 0)):
            check_integer(f"data.{name}", getattr(self, name), least)
        if self.limit is not None:
            check_integer("data.limit", self.limit, least=1)

    @property
    def window(self) -> int:
        return self.task.window

    @property
    def labels(self) -> list[str]:
        return [self.task.train.label]

    @property
    def texts(self) -> list[Text]:
        return [self.task.train]

    def split(self, tokenizer: PreTrainedTokenizerBase) -> Split:
        items = self.task.items(self.task.train)
        if len(items) <= self.held_out:
            raise ValueError(
                f"held_out={self.held_out} leaves nothing of {len(items)} rows to train on; expected less "
                f"than {len(items)}, or more rows"
            )
        random.Random(self.seed).shuffle(items)
        held, train = items[: self.held_out], items[self.held_out :][: self.limit]
        coded = self.task.encode(tokenizer, train)
        lost = {"passages": len(train), "dropped": coded.dropped, "cut": coded.cut}
        held_out = self.task.encode(tokenizer, held).examples if held else []
        name, indices = self.task.name, [*range(len(coded.examples))]
        return Split(coded.examples, {name: held_out}, {name: lost}, {name: indices})

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> TaskCollator:
        return self.task.collator(tokenizer)


@dataclass(frozen=True)
class TaskCalibration(Calibration):
    """`samples` whole examples of a task, padded and masked, drawn by seed from the rows `text`.

    seqlen: tokens of an example, at most. It equals the task's window.
    """

    task: OwnRows
    text: LabelledRows
    samples: int
    seqlen: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
            check_integer(f"calibration {name}", getattr(self, name), least)
        if self.seqlen != self.task.window:
            raise ValueError(
                f"calibration.seqlen={self.seqlen} beside task.window={self.task.window}: expected one "
                "value; give task.window alone"
            )

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
    ) -> list[Batch]:
        items = self.task.items(self.text)
        if len(items) < self.samples:
            raise ValueError(
                f"{self.text.label} has {len(items)} rows, less than calibration samples={self.samples}; "
                f"expected at most samples={len(items)}"
            )
        drawn = random.Random(self.seed).sample(items, self.samples)
        examples = self.task.encode(tokenizer, drawn).examples[: self.samples]
        collate = self.task.collator(tokenizer)
        return [collate(part) for part in chunks(examples, self.batch_size)]


def chunks(rows: Sequence[Example], size: int) -> list[Sequence[Example]]:
    """Split a list into lists of at most `size`."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]
