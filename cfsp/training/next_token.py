"""The objective of language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.training.base import Change, Objective


@dataclass(frozen=True)
class NextToken(Objective):
    """Mean cross-entropy of the next token, in nats."""

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
        return model(**inputs, num_items_in_batch=labels_in_step, use_cache=False).loss
