"""Masks: which places on the axes of weights stay after cuts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cfsp.model.sites import Masks, Member, Site
from cfsp.model.weights import weight_of
from cfsp.plans.plan import Cut


def axis_masks(pairs: Iterable[tuple[Cut, Site]], model: nn.Module) -> Masks:
    """Return the mask of every axis that the cuts touch. The key for blocks as units is (site name, 0)."""
    masks: dict[tuple[str, int], Tensor] = {}
    for cut, site in pairs:
        if site.units_are_blocks:
            masks[site.name, 0] = torch.ones(site.units, dtype=torch.bool)
            masks[site.name, 0][list(cut.removed)] = False
        for member in site.members + site.adapters:
            length = weight_of(model.get_submodule(member.module)).shape[member.dim]
            mask = masks.setdefault((member.module, member.dim), torch.ones(length, dtype=torch.bool))
            mask[member.places(cut.removed)] = False
    return masks


def refitted(cut: Cut, member: Member, weight: Tensor) -> Tensor:
    """Return a consumer's full weight: the cut's values for kept channels, else zeros. [the weight's axes]"""
    assert cut.consumer is not None, f"{cut.site}: the cut has no new weight"
    new = torch.zeros_like(weight)
    places = member.places(cut.keep).to(weight.device)
    rows = new.movedim(member.dim, 0)
    rows[places] = cut.consumer.to(weight).view(len(places), *rows.shape[1:])
    return new
