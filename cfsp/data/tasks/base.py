"""What a task is: what a model is trained and judged for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.tables import Table
from cfsp.data.windows import Example
from cfsp.model.blocks import check_positions
from cfsp.options import Checked


class Task(Checked, ABC):
    """What a model is trained and judged for.

    A model decides: on the next token at each place, on a label, on where an answer begins and where it
    ends. `decisions` says the same of all of them, so that losses need not know which it is.
    """

    head: ClassVar[str | None] = None
    """What the model has to end in, as model.head calls it; None: whatever it has."""

    options: ClassVar[Mapping[str, Any]] = {}
    """How a model is called besides its inputs."""

    @property
    def choices(self) -> Sequence[str] | None:
        """Names of what the head chooses between; None: they are no labels."""
        return None

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        """Raise ValueError if this model cannot learn the task. what: would train or measure it."""

    @abstractmethod
    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the model had to decide: logits [decisions, choices] and what is right [decisions]."""

    @abstractmethod
    def weights(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """How many of the decisions each token counts for. [batch, tokens]"""

    def cost(self, logits: Tensor, right: Tensor) -> Tensor:
        """Cross-entropy of decisions, their sum in nats. []"""
        return F.cross_entropy(logits, right, reduction="sum")

    def loss(self, model: nn.Module, inputs: Mapping[str, Tensor], decisions: Tensor | int | None) -> Tensor:
        """The mean cost of a batch. decisions: to divide by; None: this batch's own. []"""
        logits, right = self.decisions(model(**asked(inputs)), inputs)
        return self.cost(logits.float(), right) / (len(right) if decisions is None else decisions)


def asked(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without what the model is to say."""
    return {name: tensor for name, tensor in inputs.items() if name != "labels"}


@dataclass(frozen=True)
class Score:
    """One number that says how well a model does. stderr: None if unknown; n: what it was taken over."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Encoded:
    """Items as a model is asked them. examples: one or several of an item, whose number `items` holds.

    dropped, cut: items of which nothing, or not all, fits into the window.
    """

    examples: list[Example]
    items: list[int]
    about: list[Any]
    dropped: int = 0
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class LabelledTask(Task):
    """A task whose examples are rows with an answer.

    name: what metrics are called by. train, test: rows to learn from and to be judged on. window: tokens of
        an example, at most.
    """

    name: str
    train: Table
    test: Table | None
    window: int

    def __post_init__(self) -> None:
        check_integer("task window", self.window, least=8)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        wanted = "".join(part.capitalize() for part in self.head.split("_"))
        if not type(model).__name__.endswith(f"For{wanted}"):
            raise ValueError(
                f"{what} is for task {self.name}, which a {type(model).__name__} cannot do; expected "
                f"model.head={self.head}"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"task {self.name} needs a fast tokenizer, which tells where in the text a token lies"
            )
        self.padding(tokenizer)
        check_positions(model, self.window, "task.window")

    @property
    def protocol(self) -> dict[str, Any]:
        """What else the metrics depend on, as JSON data."""
        return {}

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The id to pad with. Raises ValueError if there is none."""
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"the tokenizer has no pad token, which the examples of task {self.name} need; expected a "
                "tokenizer_config.json with one, for example its end of a text"
            )
        return tokenizer.pad_token_id

    @abstractmethod
    def items(self, table: Table) -> list[Any]:
        """What rows ask and what the answer is. Raises ValueError at the first row that has not both."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Any]) -> Encoded:
        """Items as a model is asked them: input_ids, token_type_ids if the tokenizer has some, labels."""

    @abstractmethod
    def answers(self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[Any]) -> list[Any]:
        """What a model said to each item. outputs: of `output`, one for each example."""

    @abstractmethod
    def scores(self, answers: Sequence[Any], items: Sequence[Any]) -> dict[str, Score]:
        """How good the answers are."""

    def output(self, output: Any, inputs: Mapping[str, Tensor]) -> list[Any]:
        """What is kept of a model's output, for each row of a batch."""
        return [*output.logits.float().cpu()]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> TaskCollator:
        """What makes a batch of examples."""
        return TaskCollator(self.padding(tokenizer), tokenizer.pad_token_type_id)

    def weights(self, inputs: Mapping[str, Tensor]) -> Tensor:
        shown, labels = inputs["attention_mask"].float(), inputs["labels"]
        return shown / shown.sum(1, keepdim=True) * (labels.numel() / len(labels))


Labelled = Annotated[LabelledTask, "a task with rows of its own, as task=sst2, glue or squad has them"]


@dataclass(frozen=True)
class TaskCollator:
    """Pads on the right. -> input_ids, attention_mask, token_type_ids [batch, tokens], labels [batch, ...]"""

    pad: int
    pad_type: int

    def __call__(self, examples: Sequence[Mapping[str, list[Any]]]) -> dict[str, Tensor]:
        length = max(len(example["input_ids"]) for example in examples)

        def rows(key: str, filler: int) -> Tensor:
            return torch.tensor(
                [[*example[key], *[filler] * (length - len(example[key]))] for example in examples]
            )

        sizes = torch.tensor([len(example["input_ids"]) for example in examples])
        batch = {
            "input_ids": rows("input_ids", self.pad),
            "attention_mask": (torch.arange(length) < sizes[:, None]).long(),
        }
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = rows("token_type_ids", self.pad_type)
        labels = torch.tensor([example["labels"] for example in examples])
        return batch | {"labels": labels.squeeze(1) if labels.shape[1] == 1 else labels}
