"""What a schedule is, and what all schedules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.checks import check_choice
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.layouts import block_modules
from cfsp.plans import PrunePlan
from cfsp.sites import Site, unit_cost

BASES = ("sites", "blocks", "model")


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Turns a model and calibration batches into a plan; never changes a shape.

    sparsity: the share of the base's parameters to remove, in [0, 1).
    sparsity_of: the base: the chosen "sites", all "blocks", or the whole "model".
    """

    sparsity: float
    sparsity_of: str = "sites"

    def __post_init__(self) -> None:
        if not isinstance(self.sparsity, int | float) or not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity!r}: expected a share to remove, in [0, 1)")
        check_choice("sparsity_of", self.sparsity_of, BASES)

    @abstractmethod
    def plan(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        criterion: Criterion,
        allocator: Allocator,
        compensation: Compensation,
    ) -> PrunePlan:
        """Decide what every site keeps. The model is as it was afterwards."""

    def budget(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        """Parameters of the sites that may stay. Raises ValueError if the sites are too small."""
        sizes = parameters(model, sites)
        removed = round(self.sparsity * sizes[self.sparsity_of])
        if removed >= sizes["sites"]:
            raise ValueError(
                f"sparsity={self.sparsity} of the {self.sparsity_of} is {removed:,} parameters but the "
                f"sites have {sizes['sites']:,}; expected less than "
                f"{sizes['sites'] / sizes[self.sparsity_of]:.3f}, or more sites"
            )
        return sizes["sites"] - removed


def parameters(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, int]:
    """Parameters of the sites (what their units take with them), of all blocks, of the model.

    A tied weight counts once.
    """
    blocks = [model.get_submodule(path) for path in block_modules(model)]
    return {
        "sites": sum(site.units * unit_cost(model, site) for site in sites),
        "blocks": sum(weight.numel() for block in blocks for weight in block.parameters()),
        "model": sum(weight.numel() for weight in model.parameters()),
    }


def best_units(score: Tensor, count: int) -> tuple[int, ...]:
    """The `count` highest scores, rising; of equal scores the first. Exact, unlike a threshold."""
    order = torch.argsort(score, descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))
