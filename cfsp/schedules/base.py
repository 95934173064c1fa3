"""What a schedule is, and what all schedules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.cache import OFF, Cache
from cfsp.checks import check_bool, check_choice
from cfsp.collection import collect, collect_once
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.layouts import block_modules
from cfsp.plans import Cut, PrunePlan
from cfsp.progress import Progress, site_parameters
from cfsp.sites import Site
from cfsp.statistics import Stats

BASES = ("sites", "blocks", "model")


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Turns a model and calibration batches into a plan; never changes a shape.

    sparsity: the share of the base's parameters to remove, in [0, 1).
    sparsity_of: the base: the chosen "sites", all "blocks", or the whole "model".
    checkpointing: let gradients cost a second forward pass instead of the memory of activations.
    """

    sparsity: float
    sparsity_of: str = "sites"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.sparsity, int | float) or not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity!r}: expected a share to remove, in [0, 1)")
        check_choice("sparsity_of", self.sparsity_of, BASES)
        check_bool("checkpointing", self.checkpointing)

    @abstractmethod
    def plan(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        criterion: Criterion,
        allocator: Allocator,
        compensation: Compensation,
        cache: Cache = OFF,
    ) -> PrunePlan:
        """Decide what every site keeps. The model is as it was afterwards.

        cache: where statistics of the dense model are kept for the next plan.
        """

    def removed(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        """Parameters that must go. Raises ValueError if the sites are too small."""
        sizes = parameters(model, sites)
        removed = round(self.sparsity * sizes[self.sparsity_of])
        if removed and removed >= sizes["sites"]:
            raise ValueError(
                f"sparsity={self.sparsity} of the {self.sparsity_of} is {removed:,} parameters but the "
                f"sites have {sizes['sites']:,}; expected less than "
                f"{sizes['sites'] / sizes[self.sparsity_of]:.3f}, or more sites"
            )
        return removed

    def collect(
        self,
        state: Progress,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        needs: Collection[str],
        last_block: str | None = None,
        cache: Cache = OFF,
    ) -> Stats:
        """The statistics of the model as it is so far, at these of its sites; kept while it is dense."""
        if not needs:  # magnitude needs no forward pass
            return {site.name: {} for site in sites}
        names = {site.name for site in sites}
        whole = [site for site in state.whole_sites if site.name in names and state.has_units(site)]
        with state.gates():
            if state.cuts or last_block:
                stats = collect(state.model, whole, batches, needs, last_block, self.checkpointing)
            else:
                stats = collect_once(cache, state.model, whole, batches, needs, self.checkpointing)
        return {site.name: state.stat(site, stats[site.name]) for site in sites if site.name in stats}


def check_kinds(criterion: Criterion, sites: Sequence[Site]) -> None:
    """Raise ValueError if the criterion cannot score one of the sites."""
    for site in sites:
        if site.kind not in criterion.kinds:
            raise ValueError(
                f"criterion {type(criterion).__name__} cannot score {site.kind!r} sites; expected only "
                f"{', '.join(sorted(criterion.kinds))}"
            )


def parameters(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, int]:
    """Parameters of the sites (what goes with all of their units), of all blocks, of the model.

    A tied weight counts once.
    """
    blocks = [model.get_submodule(path) for path in block_modules(model)]
    return {
        "sites": site_parameters(model, sites),
        "blocks": sum(weight.numel() for block in blocks for weight in block.parameters()),
        "model": sum(weight.numel() for weight in model.parameters()),
    }


def score_sites(
    state: Progress, sites: Sequence[Site], stats: Stats, criterion: Criterion
) -> dict[str, Tensor]:
    """Score the units that are left. Raises ValueError if a score is NaN or infinite."""
    check_kinds(criterion, sites)
    scores = {}
    for site in sites:
        scores[site.name] = criterion.score(state.view(site), stats[site.name])
        if not scores[site.name].isfinite().all():
            raise ValueError(f"{site.name}: a score is NaN or infinite; expected finite weights")
    return scores


def allocate(
    state: Progress,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    stats: Stats,
    allocator: Allocator,
    removed: int,
) -> dict[str, int]:
    """Widths with which at least `removed` more parameters go, and as few more as can be."""
    if removed <= 0:
        return {site.name: site.units for site in sites}
    cost = {site.name: state.cost(site) for site in sites}
    total = sum(site.units * cost[site.name] for site in sites)
    if not overlap(sites):
        return allocator.allocate(sites, scores, stats, cost, total - removed)
    # Where sites share weights or blocks differ, costs do not add up: look for the budget that does.
    before = state.parameters()

    def gone(widths: Mapping[str, int]) -> float:
        return before - state.after(choose(sites, scores, widths, allocator)).parameters()

    low, high = allocator.least(sites, cost), total
    widths = allocator.allocate(sites, scores, stats, cost, low)
    if gone(widths) < removed:
        raise ValueError(f"the sites cannot lose {removed:,} parameters; expected a lower sparsity")
    while high - low > 1:
        middle = (low + high) // 2
        wider = allocator.allocate(sites, scores, stats, cost, middle)
        if gone(wider) >= removed:
            low, widths = middle, wider
        else:
            high = middle
    return widths


def overlap(sites: Sequence[Site]) -> bool:
    """Whether what goes with a unit depends on which other units go."""
    kinds = {site.kind for site in sites}
    return "block" in kinds or (
        len(kinds) > 1 and not kinds <= {"mlp", "attention"} and not kinds <= {"mlp", "query_heads"}
    )


def choose(
    sites: Sequence[Site], scores: Mapping[str, Tensor], widths: Mapping[str, int], allocator: Allocator
) -> dict[str, tuple[int, ...]]:
    """The best units of every site, as many as the widths say; protected ones come first."""
    chosen = {}
    for site in sites:
        score = scores[site.name].clone()
        for unit in allocator.protected_units(site):
            score[unit] = torch.inf
        chosen[site.name] = best_units(score, widths[site.name], site.groups)
    return chosen


def make_cuts(
    state: Progress,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    stats: Stats,
    allocator: Allocator,
    compensation: Compensation,
) -> list[Cut]:
    """Keep the best units of every site; what stands for the others is the compensation's business."""
    keep = choose(sites, scores, widths, allocator)
    cuts = []
    for site in sites:
        fill = compensation.fill(stats[site.name]) if widths[site.name] < site.units else None
        cuts.append(state.cut(site, keep[site.name], fill))
    return cuts


def best_units(score: Tensor, count: int, groups: int = 1) -> tuple[int, ...]:
    """The `count` highest scores, as many of each of so many equal runs; rising.

    Of equal scores the first. Exact, unlike a threshold.
    """
    order = score.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    first = torch.arange(groups)[:, None] * (len(score) // groups)
    return tuple(sorted((order.cpu() + first).flatten().tolist()))


def block_statistics(sites: Sequence[Site], stats: Stats) -> dict[str, list[float]]:
    """The per-block statistics as lists over blocks, for people to look at."""
    first_of_block = {site.block: site for site in reversed(sites) if site.block is not None}
    columns: dict[str, list[float]] = {}
    for block in sorted(first_of_block):
        for name, value in stats[first_of_block[block].name].items():
            if value.dim() == 0:
                columns.setdefault(name, []).append(float(value))
    return columns
