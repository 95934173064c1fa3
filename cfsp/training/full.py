"""Full fine-tuning, and none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cfsp.checks import check_number
from cfsp.model.blocks import block_modules
from cfsp.training.base import Change, Parameters


@dataclass(frozen=True)
class Full(Parameters):
    """Trains all weights, in the dtype that they have.

    refill: first replace zeros in the blocks' matrices by noise around the matrix's mean, with this
        fraction of its standard deviation. It fills what masks left empty inside kept units ("hybrid
        filled", Lagunas et al., arXiv:2109.04838; the release has 0.01). 0 leaves zeros, which training
        fills too, but slower.
    """

    refill: float = 0.0

    def __post_init__(self) -> None:
        check_number("refill", self.refill, least=0)

    def check(self, model: PreTrainedModel) -> None:
        """Accept every model."""

    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        return model.requires_grad_(True), {"refilled": self.fill(model)} if self.refill else {}

    @torch.no_grad()
    def fill(self, model: PreTrainedModel) -> int:
        """Replace the zeros. Returns their number."""
        filled = 0
        for path in block_modules(model):
            for weight in model.get_submodule(path).parameters():
                empty = weight == 0
                if weight.dim() > 1 and empty.any():
                    noise = torch.randn_like(weight) * self.refill * weight.std() + weight.mean()
                    weight.copy_(torch.where(empty, noise, weight))
                    filled += int(empty.sum())
        return filled

    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, None]:
        assert isinstance(trained, PreTrainedModel), "`attach` wraps nothing"
        return trained, None


@dataclass(frozen=True)
class Frozen(Parameters):
    """Trains no weight: only a schedule's scores learn."""

    frozen = True

    def check(self, model: PreTrainedModel) -> None:
        """Accept every model."""

    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        return model.requires_grad_(False), {}

    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, None]:
        assert isinstance(trained, PreTrainedModel), "`attach` wraps nothing"
        return trained, None
