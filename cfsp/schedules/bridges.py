"""Bridges: cuts of the MLPs before dropped blocks that keep all neurons and refit their consumers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.compensation.base import Compensation
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Site
from cfsp.passes.walk import Walk, walking
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.targets import target_moments
from cfsp.statistics.collect import collect

NEEDS = frozenset({"input_second_moment", "input_tokens"})
"""Statistics of the MLP before dropped blocks."""


def bridged(
    plan: PrunePlan,
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    compensation: Compensation,
    place: str = "memory",
) -> PrunePlan:
    """Return the plan with a bridge for each run of dropped blocks that has a block before it.

    place: where to store hidden states (`cfsp.passes.hidden_states`).
    Cost: two passes over the batches, and three more through the block before each run.
    """
    gone = {unit for edit in plan.edits if isinstance(edit, Cut) for unit in edit.removed}
    sites = {site.block: site for site in find_sites(model, ["mlp"])}
    made: list[Cut] = []
    with ExitStack() as stack:
        dense, pruned = (stack.enter_context(walking(model, batches, place)) for _ in range(2))
        for block in bar(range(max(gone, default=-1)), "bridge dropped blocks", "block"):
            if block in gone:
                pruned.skip()
                continue
            last = next(one for one in range(block, len(dense.blocks)) if one + 1 not in gone)
            while dense.at < last:
                dense.advance()
            own = [bridge(dense, pruned, sites[block], compensation)] if last > block else []
            with PartlyCut(model, [sites[block]], own).gates():
                pruned.advance()
            made += own
    return PrunePlan((*plan.edits, *made), plan.notes)


def bridge(dense: Walk, pruned: Walk, site: Site, compensation: Compensation) -> Cut:
    """Return the cut that refits the MLP in the pruned walk's block to the output of the dense walk's."""
    state = PartlyCut(pruned.model, [site])
    with pruned.resumed():
        found = collect(pruned.model, [site], pruned.batches, NEEDS, site.blocks[0])[site.name]
    stat = found | target_moments(dense, pruned, site, "residual", state.gates())
    keep = range(site.units)
    return state.cut(site, keep, **compensation.compensate(state.view(site), stat, keep))
