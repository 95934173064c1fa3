"""Base."""

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
    """What pruning did to the blocks that are left, in order.

    blocks: their numbers in the dense model. removed: the share of each one's parameters that is gone.
    importance: the coarse importance of each, mean angular distance; None if the plan has none.
    """

    blocks: tuple[int, ...]
    removed: tuple[float, ...]
    importance: tuple[float, ...] | None
    residual_cut: bool = False


class Parameters(Checked, ABC):
    """Which weights are trained."""

    apart: bool = False
    """Whether they stay beside the model when training ends."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that the plan must have been made with."""
        return frozenset()

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raise ValueError if this model has no such weights."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        """The module to train, its trainable weights marked, and what a record should say of them."""

    @abstractmethod
    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, Adapters | None]:
        """The model without its wrapping, and the adapters if they are kept apart."""


class Objective(Checked, ABC):
    """What training minimises."""

    needs_dense: bool = False

    @abstractmethod
    def check(self, change: Change) -> None:
        """Raise ValueError if a model that was changed so cannot be trained for it."""

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        dense: PreTrainedModel | None,
        change: Change,
        labels_in_step: Tensor | int | None,
    ) -> Tensor:
        """The loss of one batch. []

        inputs: input_ids, attention_mask, labels [batch, tokens]; labels of -100 do not count.
        labels_in_step: labels in all batches of one optimizer step; their mean, not the mean of the
            batches' means, is what gradient accumulation should give. None: this batch's own.
        """
