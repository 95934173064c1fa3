"""CFSP's coarse-grained allocation: blocks that move their tokens further keep more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cfsp.allocators.base import Allocator, Budget, Scores
from cfsp.checks import check_choice, check_number
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats

METRICS = ("angular", "cosine", "mse", "mae")


@dataclass(frozen=True, kw_only=True)
class Coarse(Allocator):
    """Allocation by how far each block moves its tokens.

    metric: the distance of a block's input and output: angular, cosine, mse, mae.
    temperature: 13.1072 is what the release has at 128 samples of 1,024 tokens; there it is
        tokens / 10^4 because distances are summed and divided by a constant. It suits angular and
        cosine, which lie in [0, 2]; with mse and mae give one that suits the model.
    """

    metric: str = "angular"
    temperature: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("metric", self.metric, METRICS)
        if self.temperature is not None:
            check_number("temperature", self.temperature, least=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"block_{self.metric}"})

    def importance(self, sites: Sequence[Site], stats: Stats) -> dict[int, float]:
        """The mean distance of every block that has a site. Raises ValueError at a site without one."""
        return {self.block(site): float(stats[site.name][f"block_{self.metric}"]) for site in sites}

    def block(self, site: Site) -> int:
        """The block that a site lies in. Raises ValueError if it lies in none."""
        if site.block is None:
            raise ValueError(
                f"allocator {type(self).__name__} goes by blocks, and {site.name!r} belongs to none; "
                "expected only mlp and attention in sites, or another allocator"
            )
        return site.block


@dataclass(frozen=True, kw_only=True)
class CFSP(Coarse):
    """keep_b in proportion to sigmoid(temperature (I_b - mean I)), I_b the block's distance.

    Wang et al. 2024 (CFSP), arXiv:2409.13199. The paper's formula is written as a sparsity but
    means, as its code does, the share that stays.

    Differs from the released code: the mean distance makes the result independent of the sample
    count; a block that reaches 100 % hands its excess to the others in proportion instead of
    shrinking every difference; widths meet the budget together instead of being rounded one by one.
    `cfsp_released` does what the release does.
    """

    temperature: float = 13.1072

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        weight = sigmoid_weights(self.importance(sites, stats), self.temperature)
        wish = {site.name: site.units * weight[self.block(site)] for site in sites}
        scale = budget.keep / sum(wish[site.name] * budget.cost[site.name] for site in sites)
        return {name: units * scale for name, units in wish.items()}


@dataclass(frozen=True, kw_only=True)
class CFSPReleased(Coarse):
    """The allocation of CFSP's released code, for comparison; it may miss the budget.

    If a block would keep more than everything, all differences from the mean shrink by one factor,
    chosen with the constant 1.05. Then each width is rounded by itself to the nearest multiple of `round_to`
    (128 with the release's `--cuda_friendly`). `round_to: 1` is the release without that flag: what scores at
    least as much as place floor(units x ratio) stays, floor(units x ratio) + 1 units, at most all.

    temperature: None takes the calibration tokens / 10^4, which is what summed distances amount to.

    Differs from the released code: a width that rounds to zero is an error (there: nothing is
    pruned) and one above the site's units is cut off (there: an IndexError); units are chosen by exact
    top-k (there: ties all stay, NaN scores all go).
    """

    temperature: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"block_tokens"} if self.temperature is None else set())

    def check(self, sites: Sequence[Site], budget: Budget) -> None:
        """Blocks and steps alone: rounding up may keep more than the budget."""
        self.protected_blocks(sites)
        for site in sites:
            self.step(site)

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        self.check(sites, budget)
        protected = self.protected_blocks(sites)
        wishes = self.wishes(sites, scores, stats, budget)
        keep = {}
        for site in sites:
            step = self.step(site)
            steps = wishes[site.name] / step
            width = (int(steps) + 1 if self.round_to == 1 else int(steps + 0.5)) * step
            if width == 0:
                raise ValueError(
                    f"{site.name}: {wishes[site.name]:.1f} of {site.units} units round to zero units; "
                    f"expected a lower sparsity or round_to below {step}"
                )
            keep[site.name] = site.units if site.block in protected else min(width, site.units)
        return keep

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        importance, temperature = self.importance(sites, stats), self.temperature
        if temperature is None:
            temperature = float(stats[sites[0].name]["block_tokens"]) / 1e4
        ratios = released_ratios(importance, temperature, budget.share)
        return {site.name: site.units * ratios[self.block(site)] for site in sites}


def sigmoid_weights(importance: Mapping[int, float], temperature: float) -> dict[int, float]:
    """sigmoid(temperature (I_b - mean I)) per block.

    Raises:
        ValueError: a weight underflows to zero: no more than a step is left of the sigmoid.
    """
    values = torch.tensor([*importance.values()], dtype=torch.float64)
    values -= values.mean()
    weights = torch.sigmoid(temperature * values)
    if not weights.min() > 0:
        most = -math.log(torch.finfo(values.dtype).tiny) / -values.min().item()
        raise ValueError(
            f"temperature={temperature:g}: the weight of a block is zero in float64, whose distance is "
            f"{-values.min():.4g} below the mean; expected at most {most:.4g}"
        )
    return dict(zip(importance, weights.tolist(), strict=True))


def released_ratios(
    importance: Mapping[int, float], temperature: float, keep_ratio: float
) -> dict[int, float]:
    """The release's share of its units that every block keeps; the mean is `keep_ratio`."""
    weights = sigmoid_weights(importance, temperature)
    mean = sum(weights.values()) / len(weights)
    largest = max(weights.values())
    shrink = 1.0
    if largest > mean and largest / mean * keep_ratio >= 1:
        shrink = mean * (1 / keep_ratio - 1) / (largest - mean) / 1.05
    return {block: keep_ratio * (1 + (weight / mean - 1) * shrink) for block, weight in weights.items()}
