"""The base classes of trained parameters and objectives, and the input of a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.tasks.base import Task
from cfsp.model.adapters import Adapters
from cfsp.options import Checked
from cfsp.plans.subject import Follow


@dataclass(frozen=True)
class Change:
    """What pruning did to the remaining blocks, in order.

    blocks: their indices in the dense model. removed: the removed fraction of each one's parameters.
    importance: the mean angular distance of each (coarse importance); None if the plan has none.
    residual_cut: whether channels of the residual stream were removed.
    """

    blocks: tuple[int, ...]
    removed: tuple[float, ...]
    importance: tuple[float, ...] | None
    residual_cut: bool = False


@dataclass(frozen=True)
class Setting:
    """The input of a training. folder: for checkpoints. follow: called with the values of each step."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    change: Change
    folder: Path
    dense: PreTrainedModel | None = None
    follow: Follow = lambda values, step: None


class Parameters(Checked, ABC):
    """Chooses which weights are trained."""

    frozen: bool = False
    """Whether no weight is trained at all."""

    wraps: bool = False
    """Whether the model's layers are inside other modules while it is trained."""

    apart: bool = False
    """Whether the trained weights stay separate from the model when training ends."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that the plan must have been made with."""
        return frozenset()

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raise ValueError if this model has no such weights."""

    def adapted(self, model: PreTrainedModel) -> list[str]:
        """Return the paths of the layers that get adapters."""
        return []

    @abstractmethod
    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        """Return the module to train, its trainable weights marked, and notes for the record."""

    @abstractmethod
    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, Adapters | None]:
        """Return the model without its wrapper, and the adapters if they are not merged."""


class Objective(Checked, ABC):
    """What training minimises."""

    teacher: str | None = None
    """A folder or a hub id of the model to imitate; None: the dense model, if any."""

    @property
    def reads_hidden_states(self) -> bool:
        """Whether the teacher's hidden states are goals, so that its blocks must be as many and as wide."""
        return False

    @property
    def needs_dense(self) -> bool:
        """Whether it learns from the dense model."""
        return False

    def of(self, task: Task) -> Objective:
        """Return this objective for a task. Raises ValueError if the task has no such objective."""
        return self

    @abstractmethod
    def check(self, change: Change) -> None:
        """Raise ValueError if a model with this change cannot be trained for it."""

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        dense: PreTrainedModel | None,
        change: Change,
        labels_in_step: Tensor | int | None,
    ) -> Tensor:
        """Return the loss of one batch.

        inputs: input_ids, attention_mask, labels [batch, tokens]; labels of -100 do not count. Tasks other
            than language modelling have the labels of their collators.
        labels_in_step: number of labels in all batches of one optimizer step, by which the loss is
            divided, so that gradient accumulation changes memory alone. None: this batch's own.
        """
