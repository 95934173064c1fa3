"""Remaining: the places of a site's weights that are left while cuts are held as gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfsp.model.sites import Masks, Member, Site
from cfsp.model.views import learned_weights


class Remaining:
    """Masks of what is left of one site: over its units, its channels and its learned weights.

    site: with all of its original units. masks: the remaining places on the axes of the model's weights.
    """

    def __init__(self, model: nn.Module, site: Site, masks: Masks):
        self.model, self.site, self.masks = model, site, masks

    @property
    def units(self) -> Tensor:
        """Whether each unit has a channel left. [units], bool"""
        return self.channels.view(self.site.units, -1).any(1)

    @property
    def channels(self) -> Tensor:
        """Whether each channel at the consumer's input is left; a block is one. [units * span], bool"""
        if self.site.units_are_blocks:
            return self.masks.get((self.site.name, 0), torch.ones(self.site.units, dtype=torch.bool))
        return self.places(self.site.consumers[0])

    @property
    def learned(self) -> Tensor:
        """Whether each place of each learned weight is left. [sum over weights of units * span], bool

        If units are blocks, each block has one place on every weight.
        """
        rows = learned_weights(self.model, self.site)
        if self.site.units_are_blocks:
            return torch.cat([self.channels for _ in rows])
        return torch.cat([self.places(member) for _, member in rows])

    def places(self, member: Member) -> Tensor:
        """Return whether each place of the units on a member's axis is left. [units * member span], bool"""
        mask = self.masks.get((member.module, member.dim))
        places = member.places(range(self.site.units))
        return torch.ones(len(places), dtype=torch.bool) if mask is None else mask[places]
