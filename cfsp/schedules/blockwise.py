"""Blockwise: every block is judged by what reaches it once the blocks before it are cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.gates import Gates
from cfsp.plans import Cut, PrunePlan
from cfsp.schedules.base import Schedule, block_statistics, collect_if_needed, make_cut, score_sites
from cfsp.sites import Site, unit_cost


@dataclass(frozen=True, kw_only=True)
class Blockwise(Schedule):
    """Widths from the dense model; then, block after block, which units stay, on pruned inputs.

    The earlier blocks' cuts are held as gates, with their fills. Within a block all sites are
    judged in one pass, as in the Wanda-sp baseline of FLAP (An et al. 2023, arXiv:2312.11983),
    which with `allocator=uniform` this is.

    Cost: one pass for the widths, then one per block that ends at that block, about half a pass
    each; the released code keeps all hidden states instead.
    """

    def plan(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        criterion: Criterion,
        allocator: Allocator,
        compensation: Compensation,
    ) -> PrunePlan:
        budget = self.budget(model, sites)
        batches = list(batches)  # read once per block
        needs = criterion.needs | compensation.needs
        dense = collect_if_needed(model, sites, batches, needs | allocator.needs)
        scores = score_sites(model, sites, dense, criterion)
        cost = {site.name: unit_cost(model, site) for site in sites}
        widths = allocator.allocate(sites, scores, dense, cost, budget)
        edits: list[Cut] = []
        for block in tqdm(sorted({site.block for site in sites}), "blocks", unit="block", disable=None):
            own = [site for site in sites if site.block == block]
            with held(edits, model, sites):
                stats = collect_if_needed(model, own, batches, needs, last_block=own[0].block_module)
            score = score_sites(model, own, stats, criterion)
            edits += [
                make_cut(site, score[site.name], widths[site.name], stats[site.name], compensation)
                for site in own
            ]
        return PrunePlan(tuple(edits), {"block_statistics": block_statistics(sites, dense)})


def held(edits: Sequence[Cut], model: PreTrainedModel, sites: Sequence[Site]) -> Gates:
    """Gates that make the model compute as if these cuts were done."""
    gates = {cut.site: torch.zeros(cut.units) for cut in edits}
    for cut in edits:
        gates[cut.site][list(cut.keep)] = 1
    return Gates(model, sites, gates, {cut.site: cut.fill for cut in edits if cut.fill is not None})
