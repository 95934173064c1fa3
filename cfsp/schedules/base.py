"""What a schedule is, and what all schedules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.checks import check_choice
from cfsp.collection import collect
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.layouts import block_modules
from cfsp.plans import Cut, PrunePlan
from cfsp.sites import Site, UnitView, unit_cost
from cfsp.statistics import Stats

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


def score_sites(
    model: PreTrainedModel, sites: Sequence[Site], stats: Stats, criterion: Criterion
) -> dict[str, Tensor]:
    """Score every site. Raises ValueError if a score is NaN or infinite."""
    scores = {site.name: criterion.score(UnitView(model, site), stats[site.name]) for site in sites}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise ValueError(f"{name}: a score is NaN or infinite; expected finite weights")
    return scores


def make_cut(
    site: Site, score: Tensor, width: int, stat: Mapping[str, Tensor], compensation: Compensation
) -> Cut:
    """Keep the best units of a site; what stands for the others is the compensation's business."""
    keep = best_units(score, width)
    return Cut(site.name, site.units, keep, compensation.fill(stat) if width < site.units else None)


def collect_if_needed(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None = None,
) -> Stats:
    """`collect`, or nothing per site where nothing is asked: magnitude needs no forward pass."""
    if not needs:
        return {site.name: {} for site in sites}
    return collect(model, sites, batches, needs, last_block)


def best_units(score: Tensor, count: int) -> tuple[int, ...]:
    """The `count` highest scores, rising; of equal scores the first. Exact, unlike a threshold."""
    order = torch.argsort(score, descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


def block_statistics(sites: Sequence[Site], stats: Stats) -> dict[str, list[float]]:
    """The per-block statistics as lists over blocks, for people to look at."""
    first_of_block = {site.block: site for site in reversed(sites)}
    columns: dict[str, list[float]] = {}
    for block in sorted(first_of_block):
        for name, value in stats[first_of_block[block].name].items():
            if value.dim() == 0:
                columns.setdefault(name, []).append(float(value))
    return columns
