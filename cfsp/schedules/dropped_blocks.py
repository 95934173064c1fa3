"""Dropped blocks: a block that lost all of its units goes as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cfsp.model.block_states import states_in, states_out
from cfsp.model.blocks import block_modules
from cfsp.model.find_sites import block_site, site_kinds
from cfsp.model.sites import Site
from cfsp.passes.forward import feed
from cfsp.passes.modes import evaluating
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut


def check_droppable(subject: Subject, method: Method) -> None:
    """Raise ValueError if blocks are to go as a whole, or to be bridged, and cannot at these sites."""
    sites, known = subject.sites, site_kinds(subject.model)
    if not method.allocator.drops:
        if method.compensation.bridges and not all(site.units_are_blocks for site in sites):
            raise ValueError(
                "compensation.bridge=true and no block is dropped; expected allocator.drop_blocks=true"
            )
        return
    if {site.kind for site in sites} != {"mlp", "attention"} or not all(site.may_go for site in sites):
        kinds = [*dict.fromkeys(site.kind for site in sites)]
        raise ValueError(
            f"allocator.drop_blocks with sites={kinds}: expected sites=[mlp,attention], in a model whose "
            "attention can go"
        )
    if "block" not in known:
        raise ValueError(
            f"allocator.drop_blocks: no block of a {subject.model.config.model_type} can go; expected false"
        )
    if added := method.compensation.adds:
        raise ValueError(
            f"allocator.drop_blocks with a compensation that adds a {', '.join(sorted(added))}, which a "
            "dropped block cannot hold; expected compensation=none, or least_squares with constant=false"
        )
    check_empty_blocks(subject.model, sites)


@torch.no_grad()
def check_empty_blocks(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raise ValueError unless a block without its units leaves the residual stream as it is."""
    changed: list[str] = []

    def compare(path: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not states_in(args, kwargs).equal(states_out(output)):
            changed.append(path)

    state = PartlyCut(model, sites)
    empty = PartlyCut(model, sites, [state.cut(site, ()) for site in sites])
    with ExitStack() as stack, evaluating(model), empty.gates():
        for path in block_modules(model):
            block = model.get_submodule(path)
            stack.callback(block.register_forward_hook(partial(compare, path), with_kwargs=True).remove)
        feed(model, {"input_ids": torch.arange(8)[None]})
    if changed:
        raise ValueError(
            f"allocator.drop_blocks: {changed[0]} of this {model.config.model_type} changes its input even "
            "without units (a bias, or a norm of the sum); expected drop_blocks=false"
        )


def empty_blocks(widths: Mapping[str, int], sites: Sequence[Site]) -> set[int]:
    """Return the blocks whose sites all lose all of their units. widths: site name -> units kept"""
    left: dict[int, int] = {}
    for site in sites:
        if site.block is not None:
            left[site.block] = left.get(site.block, 0) + widths[site.name]
    return {block for block, count in left.items() if not count}


def with_dropped_blocks(plan: PrunePlan, subject: Subject) -> PrunePlan:
    """Return the plan that also drops the blocks without units. If no block has any, all stay."""
    site, widths = block_site(subject.model), {edit.site: edit.stays[1] for edit in plan.edits}
    gone = empty_blocks(widths, subject.sites)
    keep = tuple(block for block in range(site.units) if block not in gone)
    if not gone or not keep:
        return plan
    return PrunePlan((*plan.edits, Cut(site.name, site.units, keep)), plan.notes)
