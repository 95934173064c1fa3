"""The objective of the labels: the next token, or the labels of another task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.data.tasks.base import Task
from cfsp.data.tasks.language_modelling import LanguageModelling
from cfsp.training.base import Change, Objective


@dataclass(frozen=True)
class NextToken(Objective):
    """Mean cross-entropy of the next token, in nats; for another task, the mean loss of its labels."""

    task: Task = field(default_factory=LanguageModelling)

    def of(self, task: Task) -> NextToken:
        return replace(self, task=task)

    def check(self, change: Change) -> None:
        """Accept every model."""

    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        dense: PreTrainedModel | None,
        change: Change,
        labels_in_step: Tensor | int | None,
    ) -> Tensor:
        return self.task.loss(model, inputs, labels_in_step)
