"""Error curves: choose the sites' widths by the measured error of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from cfsp.allocators.base import Allocator, Budget, Probes, Scores
from cfsp.allocators.compared_answers import ComparedAnswers
from cfsp.allocators.exchanges import Search, Terms
from cfsp.allocators.ladders import Rung, descend_with_blocks, hull
from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats

COSTS = ("parameters", "macs", "latency")


@dataclass(frozen=True, kw_only=True)
class ErrorCurves(Allocator):
    """Chooses the widths with the least sum of errors, where a site's error is measured with it alone cut.

    The error is KL(dense || cut) in nats per token, measured at a few widths (`cfsp.schedules.probes`)
    with the units and weights that the run's criterion and compensation choose. Between these widths the
    curve follows the criterion's scores. The convex hull of the curve is used: widths shrink step by step,
    always where the error per budget saved is least. That is optimal for the hulls except at the last
    step, where several ways to end are compared. A site with one unit, or one per group, is kept.

    With `allow_empty` the model is measured without each site too, so depth is a rung of the same ladder: an
    MLP or an attention goes as a whole where that costs less than narrower sites, and a block with both.

    With `rounds`, a joint search follows (`cfsp.schedules.joint`). It measures the model with all sites cut.
    A round tries each site one step narrower and one step wider around the present widths, with the other
    sites cut as they are, and then the exchanges of equal price that should lower the error most: all
    together, each site in at most one, then half as many. An exchange is kept only if the measured error
    falls; if none does, the step is halved, from 1/8 to 1/128 of a mean site. With `allow_empty`, a site may
    also go at once and come back. The schedule makes the cuts: one_shot from the dense model's statistics,
    blockwise again block by block on the first `batches`. The errors are measured on half as many, the last
    ones. Týr-the-Pruner (Li et al. 2025, arXiv:2503.09657) searches by the same error, with an evolution.

    shares: fractions of a site's units to keep in the measurements. With a single one, the site's own error
        by the scores times one measured slope is the curve: a sixth of the cost.
    batches: calibration batches to measure on. With a compensation at most half of them: it is fitted on the
        others, because a fit hides its error on its own text. Passes: sites x shares x batches, each from the
        site's block on; with a compensation, or if statistics are missing, one more over all batches, and one
        per site through its block alone.
    budget: what `sparsity` is a fraction of: the "parameters" of the sites' units, their "macs" (in a pass
        over a calibration sample) or their "latency" (seconds of a pass over as many tokens as a calibration
        batch has, by a table that is measured on this machine; `cfsp.schedules.latency_table`).
    rounds: of the joint search, at most; 0: none.
    passes: of all calibration batches that the joint search may cost, at most. Passes over some batches,
        and those that begin at a later block, count by their share.
    compared: what of the model's answers is compared; see `ComparedAnswers`.
    drop_blocks: with `allow_empty` and the sites mlp and attention: measure the model without each block too,
        and make that the last rung of the block's MLP and attention, which then share a ladder. A block that
        loses both is dropped from the model. The joint search also tries to drop a block for wider sites, or
        for another one.
    """

    shares: Sequence[float] = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2)
    batches: int = 4
    budget: str = "parameters"
    rounds: int = 0
    passes: float = 100
    compared: ComparedAnswers = field(default_factory=ComparedAnswers)
    drop_blocks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares={[*self.shares]}: expected shares to keep, between 0 and 1")
        check_integer("batches", self.batches, least=1)
        check_choice("budget", self.budget, COSTS)
        check_integer("rounds", self.rounds, least=0)
        check_number("passes", self.passes, least=0)
        if self.drop_blocks and not self.allow_empty:
            raise ValueError("drop_blocks=true with allow_empty=false: expected allow_empty=true")

    @property
    def probes(self) -> Probes:
        shares, empty, whole = tuple(self.shares), self.allow_empty, self.drop_blocks
        return Probes(shares, self.batches, self.budget, empty, self.compared, whole)

    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        self.check(sites, budget)
        prices = self.prices(sites, stats, budget.cost)
        protected = self.protected_sites(sites)
        ladders = {
            site.name: self.ladder(site, stats[site.name], prices[site.name])
            for site in sites
            if site.name not in protected and len(stats[site.name]["error_curve"]) > 1
        }
        # Exact to one parameter: the schedule rounded `budget.keep`.
        excess = (1 - budget.share) * sum(site.units * prices[site.name] for site in sites)
        blocks = self.whole_blocks(sites)
        whole = {block: float(stats[names[0]]["block_error"]) for block, names in blocks.items()}
        kept = descend_with_blocks(ladders, blocks, whole, excess * (1 - 1e-12))
        return {site.name: kept.get(site.name, site.units) for site in sites}

    def prices(self, sites: Sequence[Site], stats: Stats, cost: Mapping[str, int]) -> dict[str, float]:
        """Return the price of a unit. By a table, the mean of the units that the site can lose."""
        found = {}
        for site in sites:
            stat, least = stats[site.name], self.least_units(site)
            found[site.name] = float(stat.get("unit_cost", cost[site.name]))
            if "width_seconds" in stat and least < site.units:
                less, whole = np.interp([least, site.units], *stat["width_seconds"].numpy().T)
                found[site.name] = float(whole - less) / (site.units - least)
        return found

    @property
    def exchanges(self) -> bool:
        return self.rounds > 0

    def search(self, sites: Sequence[Site], stats: Stats, budget: Budget) -> Search | None:
        if not self.rounds:
            return None
        prices, protected = self.prices(sites, stats, budget.cost), self.protected_sites(sites)
        limit = budget.share * sum(site.units * prices[site.name] for site in sites) * (1 + 1e-12)
        rungs = {site.name: self.rungs(site) for site in sites if site.name not in protected}
        # A site of one width may have the price 0, which no step can be divided by.
        rungs = {name: widths for name, widths in rungs.items() if len(widths) > 1}
        terms = Terms(rungs, prices, limit, self.whole_blocks(sites))
        return Search(terms, self.rounds, self.passes, self.batches, self.compared)

    def whole_blocks(self, sites: Sequence[Site]) -> dict[str, list[str]]:
        """Return the blocks that may go as a whole, and the names of their sites."""
        protected = self.protected_sites(sites)
        blocks: dict[str, list[str]] = {}
        for site in sites if self.drop_blocks else ():
            blocks.setdefault(site.blocks[0], []).append(site.name)
        return {block: names for block, names in blocks.items() if protected.isdisjoint(names)}

    def rungs(self, site: Site) -> list[int]:
        """Return the widths that a site may take, ascending."""
        step, least = self.step(site), self.least_units(site)
        return sorted({site.units, *range(-(-least // step) * step, site.units, step)})

    def ladder(self, site: Site, stat: Mapping[str, Tensor], price: float) -> list[Rung]:
        """Return the widths that the site can take, from all of its units down.

        By a table of seconds, a width is left out if a wider one takes no more, and the hull is over seconds:
        the steps differ in price, and only over what they save is the cheapest step first the best way.
        """
        widths = np.array(self.rungs(site))
        costs, over = widths * price, widths
        if "width_seconds" in stat:
            costs = np.interp(widths, *stat["width_seconds"].numpy().T)
            wider = np.append(np.minimum.accumulate(costs[::-1])[::-1][1:], np.inf)
            widths, costs = widths[costs < wider], costs[costs < wider]
            over = costs
        errors = hull(over, np.interp(widths, *stat["error_curve"].numpy().T))
        spared = np.append(np.diff(costs), 0.0)  # by the step down to this width; 0 for all units
        added = np.append(errors[:-1] - errors[1:], 0.0)
        steps = zip(widths, spared, added, strict=True)
        rungs = [Rung({site.name: int(w)}, float(s), float(e)) for w, s, e in steps]
        return rungs[::-1]

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        return dict(self.allocate(sites, scores, stats, budget))
