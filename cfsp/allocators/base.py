"""The base class of allocators, and the rounding to whole widths that meet the budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from torch import Tensor

from cfsp.allocators.compared_answers import ComparedAnswers
from cfsp.allocators.exchanges import Search
from cfsp.allocators.protection import BLOCKS, Protected
from cfsp.checks import check_integer
from cfsp.model.sites import Site
from cfsp.options import Checked
from cfsp.statistics.base import Stats
from cfsp.statistics.knowledge import Knowledge

Scores = Mapping[str, Tensor]
"""Site name -> score per unit [units]."""


@dataclass(frozen=True)
class Probes:
    """Measurements on the whole model that an allocator asks for (`cfsp.schedules.probes`).

    shares: fractions of a site's units to keep. batches: calibration batches to read. cost: of a unit:
    "parameters" (not measured), "macs" or "latency". empty: also measure the removal of a whole site.
    compared: what of the answers is compared. blocks: also measure the model without each block.
    """

    shares: tuple[float, ...]
    batches: int
    cost: str
    empty: bool = False
    compared: ComparedAnswers = field(default_factory=ComparedAnswers)
    blocks: bool = False


@dataclass(frozen=True)
class Budget:
    """How many parameters some sites may keep.

    keep: most parameters to keep. total: parameters of all units. cost: site name -> parameters of a unit.
    """

    keep: int
    total: int
    cost: Mapping[str, int]

    @classmethod
    def of(cls, sites: Sequence[Site], cost: Mapping[str, int], keep: int) -> Budget:
        """Return the budget of these sites."""
        return cls(keep, sum(site.units * cost[site.name] for site in sites), cost)

    @property
    def share(self) -> float:
        """Fraction of the total that may be kept."""
        return self.keep / self.total


@dataclass(frozen=True, kw_only=True)
class Allocator(Checked, ABC):
    """Splits a budget of parameters over the sites. Sees scores and statistics, never weights.

    round_to: MLP and residual widths are multiples of this (64 or 128 suit GPU kernels); attention
        loses whole heads or key/value groups. A site that loses nothing keeps its width as it is.
    protect: blocks that keep everything, negative ones counted from the end; the others lose more instead.
        "knowledge": instead, the sites whose masking hurts the dense model most. knowledge: how that is
        measured; null: by the defaults.
    allow_empty: let an MLP or an attention lose all of its units, which removes it as a whole.
    """

    round_to: int = 1
    protect: Annotated[Sequence[int] | str | Protected, BLOCKS] = ()
    allow_empty: bool = False
    knowledge: Knowledge | None = None

    ranks: ClassVar[bool] = False
    """Whether `wishes` reads scores."""

    even: ClassVar[bool] = False
    """Whether all sites of a kind lose the same share, up to rounding and protection."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that `wishes` reads."""
        return frozenset()

    @property
    def probes(self) -> Probes | None:
        """Measurements to make before; their results are added to the statistics."""
        return None

    @property
    def drops(self) -> bool:
        """Whether blocks that lose all of their units are to be dropped."""
        return self.probes is not None and self.probes.blocks

    @property
    def exchanges(self) -> bool:
        """Whether it asks for a joint search."""
        return False

    def prices(self, sites: Sequence[Site], stats: Stats, cost: Mapping[str, int]) -> Mapping[str, float]:
        """Return what a unit takes of the budget. site name -> its parameters (`cost`), MACs or seconds"""
        return cost

    def search(self, sites: Sequence[Site], stats: Stats, budget: Budget) -> Search | None:
        """Return the joint search that the schedule is to make from `allocate`'s widths, if any."""
        return None

    def __post_init__(self) -> None:
        check_integer("round_to", self.round_to, least=1)
        if isinstance(self.protect, str) and self.protect != "knowledge":
            raise ValueError(f"protect={self.protect!r}: expected {BLOCKS}")
        if self.knowledge is not None and not isinstance(self.protect, str | Protected):
            raise ValueError(f"knowledge beside protect={[*self.protect]}: expected protect=knowledge")

    @property
    def analysis(self) -> Knowledge | None:
        """The knowledge analysis that is to say which sites are protected; None if that is known."""
        return (self.knowledge or Knowledge()) if self.protect == "knowledge" else None

    @property
    def blocks(self) -> Sequence[int]:
        """The protected blocks, if they were given by number."""
        return () if isinstance(self.protect, str | Protected) else self.protect

    @property
    def protection(self) -> str:
        """What is protected, for messages."""
        if isinstance(self.protect, Protected):
            return str(self.protect)
        if (analysis := self.analysis) is not None:
            return f"knowledge ({analysis.share:g} of the sites)"
        return str([*self.blocks])

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        """Return the number of units to keep per site.

        The kept parameters never exceed the budget, and fall short of it by less than the cheapest
        step that a site could still take.

        Raises:
            ValueError: see `check`.
        """
        self.check(sites, budget)
        protected = self.protected_sites(sites)
        kept = {site.name: site.units for site in sites if site.name in protected}
        free = [site for site in sites if site.name not in protected]
        if not free:
            return kept
        protecting = sum(units * budget.cost[name] for name, units in kept.items())
        rest = Budget.of(free, budget.cost, budget.keep - protecting)
        steps = {site.name: self.step(site) for site in free}
        least = {site.name: self.least_units(site) for site in free}
        kept |= fit(self.wishes(free, scores, stats, rest), free, steps, least, rest)
        return {site.name: kept[site.name] for site in sites}

    def check(self, sites: Sequence[Site], budget: Budget) -> None:
        """Raise ValueError unless the budget can be met; called before anything costly.

        Raises:
            ValueError: a block in `protect` does not exist, round_to is wider than an MLP, or the
                budget is too small for one step in every site and for the protected blocks.
        """
        least = self.least(sites, budget.cost)
        if budget.keep < budget.total and len(self.protected_sites(sites)) == len(sites):
            raise ValueError(f"protect={self.protection}: every block is protected; expected some to cut")
        if budget.keep < least:
            fate = "is more than they can lose" if self.allow_empty else "would leave a width of zero units"
            raise ValueError(
                f"sparsity {1 - budget.share:.6g} of the sites {fate}; with "
                f"round_to={self.round_to} and protect={self.protection} expected at most "
                f"{math.floor((1 - least / budget.total) * 1e4) / 1e4:.4f}"
            )

    def least(self, sites: Sequence[Site], cost: Mapping[str, float]) -> float:
        """Return the fewest parameters that the sites can keep. cost: of a unit (or what `prices` gives)"""
        protected = self.protected_sites(sites)
        fewest = {site.name: self.least_units(site) for site in sites}
        held = sum(fewest[site.name] * cost[site.name] for site in sites)
        more = {site.name: (site.units - fewest[site.name]) * cost[site.name] for site in sites}
        if self.analysis is not None:  # not known yet which; at best those that matter least for the budget
            return held + sum(sorted(more.values())[: self.analysis.count(len(sites))])
        return held + sum(more[name] for name in protected)

    def protected_sites(self, sites: Sequence[Site]) -> set[str]:
        """Return the names of the sites that keep everything. Raises ValueError if a block does not exist."""
        if isinstance(self.protect, Protected):
            return {site.name for site in sites} & self.protect.sites
        protected = self.protected_blocks(sites)
        return {site.name for site in sites if site.block in protected}

    def protected_blocks(self, sites: Sequence[Site]) -> set[int]:
        """Return the indices of the protected blocks. Raises ValueError if one does not exist."""
        blocks = max(
            (site.before or site.units) if site.units_are_blocks else 1 + (site.block or 0) for site in sites
        )
        for block in self.blocks:
            if not -blocks <= block < blocks:
                raise ValueError(f"protect={[*self.blocks]}: expected blocks in {-blocks}..{blocks - 1}")
        return {block % blocks for block in self.blocks}

    def protected_units(self, site: Site) -> set[int]:
        """Return the units to keep whatever their score: the protected blocks, if units are blocks."""
        if not site.units_are_blocks:
            return set()
        protected = {block % (site.before or site.units) for block in self.blocks}
        numbers = site.numbers or range(site.units)
        return {unit for unit, number in enumerate(numbers) if number in protected}

    def least_units(self, site: Site) -> int:
        """Return the fewest units that a site may keep."""
        if self.allow_empty and site.may_go:
            return 0
        return max(self.step(site), len(self.protected_units(site)))

    def step(self, site: Site) -> int:
        """Return the smallest change of a site's width, in units."""
        if not site.is_a_width:
            return site.groups  # of query heads: one in each key/value group
        if self.round_to > site.units:
            raise ValueError(
                f"round_to={self.round_to}: {site.name} has {site.units} units; expected at most that"
            )
        return self.round_to

    @abstractmethod
    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        """Return how many units each site should keep, as real numbers; only their proportions matter."""


def fit(
    wishes: Mapping[str, float],
    sites: Sequence[Site],
    steps: Mapping[str, int],
    least: Mapping[str, int],
    budget: Budget,
) -> dict[str, int]:
    """Return whole widths that are proportional to the wishes and meet the budget.

    A site keeps at least `least` units (usually one step) and at most all of them; where such a bound
    applies, the other sites share the difference in proportion. Then every width is rounded down to
    a multiple of its step, and the rest of the budget goes, step by step, to the site that is furthest
    below its unrounded width.
    """
    due = fill_proportionally(wishes, sites, least, budget)
    keep = {}
    for site in sites:
        whole = due[site.name] >= site.units
        steps_due = int(due[site.name] // steps[site.name])
        keep[site.name] = site.units if whole else max(steps_due * steps[site.name], least[site.name])
    left = budget.keep - sum(keep[site.name] * budget.cost[site.name] for site in sites)
    while True:
        sizes = {site.name: min(steps[site.name], site.units - keep[site.name]) for site in sites}
        # How many steps each site that can still grow is below its unrounded width.
        behind = {name: (due[name] - keep[name]) / size for name, size in sizes.items() if size}
        order = sorted(behind, key=behind.__getitem__, reverse=True)
        best = next((name for name in order if sizes[name] * budget.cost[name] <= left), None)
        if best is None:
            return keep
        keep[best] += sizes[best]
        left -= sizes[best] * budget.cost[best]


def fill_proportionally(
    wishes: Mapping[str, float],
    sites: Sequence[Site],
    least: Mapping[str, int],
    budget: Budget,
) -> dict[str, float]:
    """Scale all wishes by one factor, within each site's bounds, so that they cost the budget."""

    def scaled(factor: float) -> dict[str, float]:
        return {
            # A wish of zero must still be able to grow once all other sites are full.
            site.name: min(max(factor * max(wishes[site.name], 1e-9), least[site.name]), site.units)
            for site in sites
        }

    def price(widths: Mapping[str, float]) -> float:
        return sum(widths[name] * budget.cost[name] for name in widths)

    if abs(price(scaled(1.0)) - budget.keep) <= 1e-9 * budget.keep:
        return scaled(1.0)
    low, high = 0.0, 1.0
    while price(scaled(high)) < budget.keep and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if price(scaled(middle)) < budget.keep else (low, middle)
    return scaled(high)
