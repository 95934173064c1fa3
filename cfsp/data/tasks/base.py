"""The base classes of tasks: what a model is trained for and measured on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.labelled_rows import LabelledRows
from cfsp.data.windows import Example
from cfsp.model.blocks import check_positions
from cfsp.model.model_inputs import inputs_of
from cfsp.options import Checked


class Task(Checked, ABC):
    """What a model is trained for and measured on.

    A model decides: about the next token at each place, about a label, about the first and the last token
    of an answer. `decisions` has one form for all of them, so that losses need not know the task.
    """

    head: ClassVar[str | None] = None
    """The head that the model must have, as in model.head; None: any."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the model besides its inputs."""

    one_stack: ClassVar[bool] = True
    """Whether the model has one list of hidden states, all of the same tokens."""

    @property
    def choices(self) -> Sequence[str] | None:
        """Names of the labels that the head chooses between; None: it chooses between no labels."""
        return None

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        """Raise ValueError if this model cannot learn the task. what: the stage, for messages."""

    @abstractmethod
    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits of all decisions [decisions, choices], and the right choices [decisions]."""

    @abstractmethod
    def weights(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return how many decisions each token counts for. [batch, tokens]"""

    def cost(self, logits: Tensor, right: Tensor) -> Tensor:
        """Return the cross-entropy, summed over decisions, in nats. []

        logits: [decisions, choices]; right: [decisions].
        """
        return F.cross_entropy(logits, right, reduction="sum")

    def loss(self, model: nn.Module, inputs: Mapping[str, Tensor], decisions: Tensor | int | None) -> Tensor:
        """Return the mean cost of a batch. decisions: the number to divide by; None: this batch's own. []"""
        logits, right = self.decisions(model(**inputs_of(model, inputs), **self.options), inputs)
        return self.cost(logits.float(), right) / (len(right) if decisions is None else decisions)


@dataclass(frozen=True)
class Score:
    """The value of a metric. stderr: None if unknown. n: the number of items."""

    value: float
    stderr: float | None
    n: int
    better: Literal["lower", "higher"] = "higher"


@dataclass(frozen=True)
class Encoded:
    """Items as examples, the inputs of a model. An item has one example or several.

    items: the index of each example's item. about: what the task keeps about each example.
    dropped, cut: numbers of items of which nothing, or not everything, fits into the window.
    """

    examples: list[Example]
    items: list[int]
    about: list[Any]
    dropped: int = 0
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class LabelledTask(Task):
    """A task with labelled rows.

    name: in the names of metrics. train: rows to learn from. test: rows to measure on.
    window: tokens of an example, at most.
    """

    metrics: ClassVar[Sequence[str]]
    """Names of the metrics."""

    name: str
    train: LabelledRows
    test: LabelledRows | None
    window: int

    def __post_init__(self) -> None:
        check_integer("task window", self.window, least=8)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        if not type(model).__name__.endswith(self.ending):
            raise ValueError(
                f"{what} is for task {self.name}, which a {type(model).__name__} cannot do; expected "
                f"model.head={self.head}"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"task {self.name} needs a fast tokenizer, which knows the place of each token in the text"
            )
        self.padding(tokenizer)
        check_positions(model, self.window, "task.window")

    @property
    def ending(self) -> str:
        """The ending of the classes of models with this head."""
        return "For" + "".join(part.capitalize() for part in str(self.head).split("_"))

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything else that the metrics depend on, as JSON data."""
        return {}

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the id of the pad token. Raises ValueError if there is none."""
        if not isinstance(found := tokenizer.pad_token_id, int):
            raise ValueError(
                f"the tokenizer has no pad token, which the examples of task {self.name} need; expected a "
                "tokenizer_config.json with one, for example its EOS token"
            )
        return found

    @abstractmethod
    def items(self, rows: LabelledRows) -> list[Any]:
        """Return the input and the answer of each row. Raises ValueError at the first row that lacks one."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Any]) -> Encoded:
        """Return the items as examples: input_ids, labels, and token_type_ids if the tokenizer has them."""

    @abstractmethod
    def answers(self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[Any]) -> list[Any]:
        """Return the model's answer to each item. outputs: of `respond`, one for each example."""

    @abstractmethod
    def scores(self, answers: Sequence[Any], items: Sequence[Any]) -> dict[str, Score]:
        """Return metric -> its score on these answers."""

    def respond(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what `answers` reads of the model, for each row of a batch. Each [choices], or other axes

        Raises ValueError if an output is NaN or infinite.
        """
        found = self.outputs_of(model(**inputs_of(model, inputs)), inputs)
        if not all(one.isfinite().all() for one in found):
            raise ValueError(self.not_finite)
        return found

    @property
    def not_finite(self) -> str:
        """The message about an output that is NaN or infinite."""
        return (
            f"task {self.name}: an output is NaN or infinite; check the weights, or use model.dtype=float32"
        )

    def outputs_of(self, output: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what `answers` reads of a model's output, for each row of a batch. Each [choices]"""
        return [*output.logits.float().cpu()]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> TaskCollator:
        """Return the function that makes a batch of examples."""
        return TaskCollator(self.padding(tokenizer), tokenizer.pad_token_type_id)

    def weights(self, inputs: Mapping[str, Tensor]) -> Tensor:
        shown, labels = inputs["attention_mask"].float(), inputs["labels"]
        return shown / shown.sum(1, keepdim=True) * (labels.numel() / len(labels))


OwnRows = Annotated[LabelledTask, "a task with rows of its own, such as task=sst2, glue or squad"]


@dataclass(frozen=True)
class TaskCollator:
    """Pads on the right. -> input_ids, attention_mask, token_type_ids [batch, tokens], labels [batch, ...]"""

    pad: int
    pad_type: int

    def __call__(self, examples: Sequence[Mapping[str, list[Any]]]) -> dict[str, Tensor]:
        """Make a batch of examples. -> input_ids, attention_mask, token_type_ids [batch, tokens], labels"""
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
        return batch | {"labels": self.labels(examples)}

    def labels(self, examples: Sequence[Mapping[str, list[Any]]]) -> Tensor:
        """Return the labels of a batch, which are equally many in each example. [batch] or [batch, labels]"""
        labels = torch.tensor([example["labels"] for example in examples])
        return labels.squeeze(1) if labels.shape[1] == 1 else labels
