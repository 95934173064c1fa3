"""Knowledge distribution: which sites of a model hold what it knows (LoRAShear's analysis)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from cfsp.checks import check_choice, check_integer
from cfsp.model.sites import Site
from cfsp.options import Checked

MEASURES = ("loss", "perplexity", "kl")


def masked_units(site: Site, ratio: float) -> int:
    """Return how many units of a site a ratio masks: rounded down, equally many in each of its groups."""
    return math.floor(ratio * (site.units // site.groups)) * site.groups


@dataclass(frozen=True, kw_only=True)
class Knowledge(Checked):
    """Masks the units of one site that matter least, at several ratios, and measures what the model loses.

    Sites with the largest mean deviation are not to be pruned (Chen et al., LoRAShear, arXiv:2310.18356,
    Algorithm 3). The paper gives neither ratios nor the share nor the evaluation set; these are ours. Units
    matter by the norm of their weights, so that the answer is one of the model, not of the run's criterion.

    ratios: of a site's units to mask, rounded down; where that is no unit, the deviation counts as 0.
    share: of the sites to protect, rounded, at least one.
    measure: the deviation from the dense model: its "loss" (nats), its "perplexity", or "kl", the divergence
        KL(dense || masked) in nats, which needs no labels but holds the dense model's log probabilities: 4
        bytes for each measured token and each word of the vocabulary.
    batches: calibration batches to measure on, all if there are fewer. Cost: ratios x batches passes for each
        site, from the site's block on, and no copy of the model.
    """

    ratios: Sequence[float] = (0.25, 0.5, 0.75)
    share: float = 0.1
    measure: str = "loss"
    batches: int = 4

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"ratios={[*self.ratios]}: expected ratios to mask, between 0 and 1")
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share:g}: expected a fraction of the sites, between 0 and 1")
        check_choice("measure", self.measure, MEASURES)
        check_integer("batches", self.batches, least=1)

    def count(self, sites: int) -> int:
        """Return how many of so many sites are protected."""
        return max(1, round(self.share * sites))

    def check(self, sites: Sequence[Site]) -> None:
        """Raise ValueError if no ratio masks a unit of a site that has several.

        Its deviation would be 0 and say nothing. A site's only unit cannot be masked, and is none to lose.
        """
        for site in sites:
            runs = site.units // site.groups
            if runs > 1 and not any(masked_units(site, ratio) for ratio in self.ratios):
                raise ValueError(
                    f"ratios={[*self.ratios]} mask none of the {site.units} units of {site.name}; expected a "
                    f"ratio of {math.ceil(1000 / runs) / 1000:g} or more among them"
                )

    def most_sensitive(self, deviations: Mapping[str, Sequence[float]]) -> list[str]:
        """Return the names of the sites with the largest mean deviation, the largest first.

        Raises ValueError if a deviation is NaN or infinite.
        """
        means = {name: fmean(values) for name, values in deviations.items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise ValueError(
                    f"{name}: the deviation of the masked model, measure={self.measure}, is {mean}; expected "
                    "finite numbers: measure=kl or loss, smaller ratios, or model.dtype=float32"
                )
        order = sorted(means, key=lambda name: -means[name])  # stable: of equals the first
        return order[: self.count(len(order))]
