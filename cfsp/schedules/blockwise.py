"""Blockwise: every block is judged by what reaches it once the blocks before it are cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.cache import OFF, Cache
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.plans import Cut, PrunePlan
from cfsp.progress import Progress
from cfsp.schedules.base import Schedule, allocate, block_statistics, make_cuts, score_sites
from cfsp.sites import Site


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
        cache: Cache = OFF,
    ) -> PrunePlan:
        if any(site.block is None for site in sites):
            raise ValueError(
                "schedule blockwise needs sites that lie in blocks; expected only mlp and attention"
            )
        batches = list(batches)  # read once per block
        needs = criterion.needs | compensation.needs
        dense = Progress(model, sites)
        stats = self.collect(dense, sites, batches, needs | allocator.needs, cache=cache)
        scores = score_sites(dense, sites, stats, criterion)
        widths = allocate(dense, sites, scores, stats, allocator, self.removed(model, sites))
        notes = {"block_statistics": block_statistics(sites, stats)}
        cuts: list[Cut] = []
        for block in tqdm(sorted({site.block for site in sites}), "blocks", unit="block", disable=None):
            own = [site for site in sites if site.block == block]
            state = Progress(model, sites, cuts)
            stats = self.collect(state, own, batches, needs, last_block=own[0].blocks[0])
            scores = score_sites(state, own, stats, criterion)
            cuts += make_cuts(state, own, scores, widths, stats, allocator, compensation)
        return PrunePlan(tuple(cuts), notes)
