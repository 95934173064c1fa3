"""CFSP's coarse-grained allocation: blocks that change the hidden states more keep more."""

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
    """Allocation by the distance between each block's input and output.

    metric: the distance between a block's input and output: angular, cosine, mse, mae.
    temperature: 13.1072 is the release's value at 128 samples of 1,024 tokens; there it is
        tokens / 10^4, because distances are summed and divided by a constant. It suits angular and
        cosine, which lie in [0, 2]; mse and mae need a value that suits the model.
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
        """Return the mean distance per block. Raises ValueError if a site belongs to no block."""
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

    Wang et al. 2024 (CFSP), arXiv:2409.13199. The paper calls the formula a sparsity; it is the
    fraction that is kept, as the paper's code shows.

    Differs from the released code: distances are means, so the result does not depend on the number
    of samples; what a block would keep above 100 % goes to the others in proportion (there: every
    difference shrinks); widths meet the budget together (there: each is rounded on its own).
    `cfsp_released` reproduces the release.
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

    If a block would keep more than 100 %, all differences from the mean shrink by one factor, which
    includes the constant 1.05. Then each width is rounded on its own to the nearest multiple of `round_to`
    (128 with the release's `--cuda_friendly`). `round_to: 1` is the release without that flag, whose
    threshold keeps floor(units x ratio) + 1 units, at most all.

    temperature: None takes the calibration tokens / 10^4, which equals the release's summed distances.

    Differs from the released code: a width that rounds to zero is an error (there: nothing is
    pruned) and one above the site's units is reduced to them (there: an IndexError); units are chosen
    by exact top-k (there: all ties are kept, all NaN scores removed).
    """

    temperature: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"block_tokens"} if self.temperature is None else set())

    def check(self, sites: Sequence[Site], budget: Budget) -> None:
        """Check the protected blocks and the steps only: rounding up may exceed the budget."""
        self.protected_blocks(sites)
        for site in sites:
            self.step(site)

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        self.check(sites, budget)
        protected = self.protected_sites(sites)
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
            keep[site.name] = site.units if site.name in protected else min(width, site.units)
        return keep

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        importance, temperature = self.importance(sites, stats), self.temperature
        if temperature is None:
            temperature = float(stats[sites[0].name]["block_tokens"]) / 1e4
        ratios = released_ratios(importance, temperature, budget.share)
        return {site.name: site.units * ratios[self.block(site)] for site in sites}


def sigmoid_weights(importance: Mapping[int, float], temperature: float) -> dict[int, float]:
    """Return sigmoid(temperature (I_b - mean I)) per block.

    Raises:
        ValueError: a weight underflows to zero.
    """
    values = torch.tensor([*importance.values()], dtype=torch.float64)
    values -= values.mean()
    weights = torch.sigmoid(temperature * values)
    if not weights.min() > 0:
        most = -math.log(torch.finfo(values.dtype).tiny) / -values.min().item()
        raise ValueError(
            f"temperature={temperature:g}: the weight of a block whose distance is {-values.min():.4g} "
            f"below the mean is zero in float64; expected at most {most:.4g}"
        )
    return dict(zip(importance, weights.tolist(), strict=True))


def released_ratios(
    importance: Mapping[int, float], temperature: float, keep_ratio: float
) -> dict[int, float]:
    """Return the fraction of units that each block keeps in the release; their mean is `keep_ratio`."""
    weights = sigmoid_weights(importance, temperature)
    mean = sum(weights.values()) / len(weights)
    largest = max(weights.values())
    shrink = 1.0
    if largest > mean and largest / mean * keep_ratio >= 1:
        shrink = mean * (1 / keep_ratio - 1) / (largest - mean) / 1.05
    return {block: keep_ratio * (1 + (weight / mean - 1) * shrink) for block, weight in weights.items()}
