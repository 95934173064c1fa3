"""LHSPG: progressive structured pruning by low-rank adapters (LoRAShear)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.training.lhspg_options import LHSPGOptions
from cfsp.training.lhspg_periods import HalfSpacePruning
from cfsp.training.pruner import Decide, Pruner


@dataclass(frozen=True, kw_only=True)
class LHSPG(LHSPGOptions, Pruner):
    """Shrinks redundant units to zero in periods, while adapters learn to do without them.

    LoRA half-space projected gradient (Chen et al., LoRAShear, arXiv:2310.18356, Algorithm 4). The base
    weights x are frozen; only adapters B A are trained, so no gradient of x is ever formed. After the
    warm-up the allocator sets how many units each site loses, K in all. Period p marks the units of lowest
    saliency in all sites together as redundant, until round(K (p + 1) / periods) are; a site that has lost
    its share loses no more. After every optimizer step, for these units g:

        x' = x + scale B A - lambda x / |x|;  x' = 0 if <x', x> < epsilon |x|^2;  x = x', B = 0 in g's rows

    with lambda = |x| at the period's start / steps of the period. At its end they are exactly zero, and
    x = x + scale B A, B = 0 for all other units. Redundant units so follow the loss while they shrink, and
    the adapters of the others take over what they did.

    variant: "paper" is this. "linear_decay" is the authors' published optimizer: rows of x, bias and B of
        the redundant units are multiplied by (T - t - 1) / (T - t) in step t of T, there is no trial step
        and no half-space, and adapters are merged only when training ends.
    proxies: saliency -> weight. W are a unit's rows, D = scale B A in these rows: magnitude |W|,
        avg_magnitude |W| / count, cosine_similarity cos(W, D) + 1, taylor_first |<W, D>|, taylor_second
        <W, D>^2 / 2; each is divided by its norm over all units that are left.
    periods: number of periods; if fewer units go, some are without one. warmup, cooldown: fractions of the
        steps before the first and after the last.
    epsilon: of the half-space, in [0, 1).

    Differs from the paper: an allocator divides the target over the sites, once, so that exactly the asked
    parameters go; the paper takes the lowest of all groups in every period and has no share of a site. The
    target grows cumulatively, because a rounded K / periods would not sum to K. Merged adapters start again
    from B = 0 with an empty optimizer state, which the paper leaves open.
    """

    on_adapters = True

    @property
    def learns(self) -> bool:
        return False

    def check(self, model: PreTrainedModel, sites: Sequence[Site], adapted: Collection[str] = ()) -> None:
        for site in sites:
            if not (site.units_are_neurons or site.units_are_whole_heads):
                raise ValueError(
                    f"LHSPG shrinks the rows that make a unit; those of {site.kind!r} do not make it zero: "
                    "expected only mlp, attention and cross_attention in sites"
                )
            made_by = [*dict.fromkeys(member.module for member in site.producers)]
            if not {*made_by} & {*adapted}:
                names = sorted({path.rsplit(".", 1)[-1] for path in made_by})
                raise ValueError(
                    f"{site.name} has no adapter on any of {len(made_by)} layers that make its units; "
                    f"expected some of {', '.join(names)} in schedule.parameters.targets, or null"
                )

    def attach(
        self, model: PreTrainedModel, sites: Sequence[Site], target: float, decide: Decide
    ) -> HalfSpacePruning:
        return HalfSpacePruning(self, model, sites, target, decide)
