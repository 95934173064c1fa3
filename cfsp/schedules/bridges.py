"""Bridges: cuts of the MLPs before dropped blocks that refit their consumers to what the blocks added."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.compensation.base import Compensation
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Site
from cfsp.passes.walk import Walk, walking
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.dropped_blocks import with_dropped_blocks
from cfsp.schedules.method import Method
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
    sites: Sequence[Site] = (),
) -> PrunePlan:
    """Return the plan with a bridge for each run of dropped blocks that has an MLP before it.

    place: where to store hidden states (`cfsp.passes.hidden_states`). sites: those in the blocks.
    Cost: two passes over the batches, and three more through the block before each run.
    """
    cuts = {edit.site: edit for edit in plan.edits if isinstance(edit, Cut)}
    gone = dropped_in(cuts.values())
    runs, mlps = runs_after(gone), {site.block: site for site in find_sites(model, ["mlp"])}
    with ExitStack() as stack:
        dense, pruned = (stack.enter_context(walking(model, batches, place)) for _ in range(2))
        for block in bar(range(max(gone, default=-1)), "bridge dropped blocks", "block"):
            if block in gone:
                pruned.skip()
                continue
            own = {site.name: site for site in [mlps.get(block), *sites] if site and site.block == block}
            state = PartlyCut(model, [*own.values()], [cuts[name] for name in own if name in cuts])
            if block in runs and block in mlps and state.has_units(site := mlps[block]):
                while dense.at < runs[block]:
                    dense.advance()
                cuts[site.name] = bridge(dense, pruned, state, site, compensation)
                state = PartlyCut(model, [*own.values()], [cuts[name] for name in own if name in cuts])
            with state.gates():
                pruned.advance()
    others = (edit for edit in plan.edits if edit.site not in cuts)
    return PrunePlan((*cuts.values(), *others), plan.notes)


def settle_blocks(
    plan: PrunePlan,
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    place: str = "memory",
    built: bool = False,
) -> PrunePlan:
    """Return the plan with blocks without units dropped, and bridges, if the method asks for them.

    place: where to store hidden states (`cfsp.passes.hidden_states`). built: whether it has the bridges.
    """
    if method.allocator.drops:
        plan = with_dropped_blocks(plan, subject)
    if not method.compensation.bridges:
        return plan
    if not built:
        plan = bridged(plan, subject.model, batches, method.compensation, place, subject.sites)
    return with_bridges_noted(plan, subject.model)


def with_bridges_noted(plan: PrunePlan, model: PreTrainedModel) -> PrunePlan:
    """Note which runs of dropped blocks have a bridge, each by its first block. Say which have none."""
    cuts = {edit.site: edit for edit in plan.edits if isinstance(edit, Cut)}
    emptied = {name for name, cut in cuts.items() if not cut.keep}
    mlps = {site.block for site in find_sites(model, ["mlp"]) if site.name not in emptied}
    starts = starts_of(dropped_in(cuts.values()))
    if not starts:
        return plan
    without = [block for block in starts if block - 1 not in mlps]
    if without:
        print(
            f"cfsp: no bridge for the dropped blocks from {', '.join(map(str, without))} on: there is no MLP "
            "in the block before",
            file=sys.stderr,
        )
    noted = {"bridges": {"of": [block for block in starts if block not in without], "not_of": without}}
    return PrunePlan(plan.edits, plan.notes | noted)


def dropped_in(cuts: Iterable[Cut]) -> set[int]:
    """Return the blocks that the cuts drop as a whole."""
    return {unit for cut in cuts if cut.units_are_blocks for unit in cut.removed}


def starts_of(gone: Collection[int]) -> list[int]:
    """Return the first block of each run of dropped ones."""
    return sorted(block for block in gone if block - 1 not in gone)


def runs_after(gone: Collection[int]) -> dict[int, int]:
    """Return each block that stays before a run of dropped ones -> the last block of the run."""
    ends = sorted(block for block in gone if block + 1 not in gone)
    return {start - 1: end for start, end in zip(starts_of(gone), ends, strict=True) if start}


def bridge(dense: Walk, pruned: Walk, state: PartlyCut, site: Site, compensation: Compensation) -> Cut:
    """Return the cut that refits the MLP in the pruned walk's block to the output of the dense walk's.

    state: the cuts of the pruned walk's block. The MLP keeps the units that it has.
    """
    with pruned.resumed(), state.gates():
        needs = NEEDS | compensation.needs
        found = collect(pruned.model, [site], pruned.batches, needs, site.blocks[0])[site.name]
    left = next(one for one in state.sites if one.name == site.name)
    rows = [*left.numbers, site.units]  # and the constant's
    moments = target_moments(dense, pruned, site, "residual", state.gates())
    stat = state.stat(left, found) | {name: moment[rows] for name, moment in moments.items()}
    keep = range(left.units)
    return state.cut(left, keep, **compensation.compensate(state.view(left), stat, keep))
