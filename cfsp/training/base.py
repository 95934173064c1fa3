"""The base classes of trained parameters and objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.adapters import Adapters
from cfsp.options import Checked


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


class Parameters(Checked, ABC):
    """Chooses which weights are trained."""

    apart: bool = False
    """Whether the trained weights stay separate from the model when training ends."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that the plan must have been made with."""
        return frozenset()

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raise ValueError if this model has no such weights."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        """Return the module to train, its trainable weights marked, and notes for the record."""

    @abstractmethod
    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, Adapters | None]:
        """Return the model without its wrapper, and the adapters if they are not merged."""


class Objective(Checked, ABC):
    """What training minimises."""

    needs_dense: bool = False

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

        inputs: input_ids, attention_mask, labels [batch, tokens]; labels of -100 do not count.
        labels_in_step: number of labels in all batches of one optimizer step, by which the loss is
            divided, so that gradient accumulation changes memory alone. None: this batch's own.
        """
