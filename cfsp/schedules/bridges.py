"""Bridges: cuts of the MLPs before dropped blocks that keep all neurons and refit their consumers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.compensation.bridge import Bridge
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Site
from cfsp.model.weights import weight_of
from cfsp.passes.walk import Walk, walking
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.targets import check_residual, shown_and_held_out, watching
from cfsp.statistics.moments import full_float32
from cfsp.statistics.regression import refit


def bridged(
    plan: PrunePlan,
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    compensation: Bridge,
    place: str = "memory",
) -> PrunePlan:
    """Return the plan with a bridge for each run of dropped blocks that has a block before it.

    place: where to store hidden states (`cfsp.passes.hidden_states`).
    Cost: two passes over the batches, and two more through the block before each run.

    Raises ValueError if the blocks do not add what their MLPs give to the residual stream.
    """
    gone = {unit for edit in plan.edits if isinstance(edit, Cut) for unit in edit.removed}
    sites = {site.block: site for site in find_sites(model, ["mlp"])}
    made: list[Cut] = []
    with ExitStack() as stack:
        dense, pruned = (stack.enter_context(walking(model, batches, place)) for _ in range(2))
        check_residual(dense)
        for block in bar(range(max(gone, default=-1)), "bridge dropped blocks", "block"):
            last = block
            while last + 1 in gone:
                last += 1
            if block in gone:
                pruned.skip()
            elif last > block:
                for _ in range(last - block):
                    dense.advance()
                made.append(bridge(dense, pruned, sites[block], compensation))
                with PartlyCut(model, [sites[block]], made[-1:]).gates():
                    pruned.advance()
                dense.advance()
            else:
                pruned.advance()
                dense.advance()
    return PrunePlan((*plan.edits, *made), plan.notes)


def bridge(dense: Walk, pruned: Walk, site: Site, compensation: Bridge) -> Cut:
    """Return the cut that refits the MLP in the pruned walk's block to the output of the dense walk's."""
    moment = cross = torch.zeros((), dtype=torch.float64)
    for number, batch in enumerate(pruned.batches):
        with watching(dense, None) as ideal:
            dense.run(number)
        with watching(pruned, site) as seen:
            pruned.run(number)
        wanted = seen.output + ideal.after - seen.after
        shown, _ = shown_and_held_out(batch, 0, wanted.device)
        inputs = torch.cat([seen.inputs, torch.ones_like(seen.inputs[:, :1])], dim=1)[shown]
        with full_float32():
            moment = moment + (inputs.T @ inputs).double()
            cross = cross + (inputs.T @ wanted[shown]).double()
    count = moment[-1, -1]
    member = site.consumers[0]
    prior = weight_of(pruned.model.get_submodule(member.module)).detach().movedim(member.dim, 0).double()
    places = torch.arange(site.units, device=prior.device)
    fitted, _ = refit(
        moment / count, cross / count, places, compensation.ridge, prior, False,
        f"{site.name}: compensation ridge", compensation.scale,
    )  # fmt: skip
    keep = range(site.units)
    return PartlyCut(pruned.model, [site]).cut(site, keep, consumer=fitted.float().cpu())
