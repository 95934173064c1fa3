"""Full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cfsp.training.base import Change, Parameters


@dataclass(frozen=True)
class Full(Parameters):
    """Trains all weights, in the dtype that they have."""

    def check(self, model: PreTrainedModel) -> None:
        """Accept every model."""

    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        return model.requires_grad_(True), {}

    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, None]:
        assert isinstance(trained, PreTrainedModel), "`attach` wraps nothing"
        return trained, None
