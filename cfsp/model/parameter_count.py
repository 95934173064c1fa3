"""Parameter count: count the parameters of a model that gates cut, and predict the count at other widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.blocks import block_modules
from cfsp.model.remaining import Remaining
from cfsp.model.sites import Masks, Site
from cfsp.model.views import left_places
from cfsp.model.weights import adapter_weights, weight_of

AxisShares = Mapping[tuple[str, int], float]
"""(module, dim) -> fraction of the axis's remaining places that stays; (block, -1): of the block."""


class ParameterCount:
    """Counts the remaining parameters of a model, and predicts the count for other widths.

    The count is exact even if sites share weights: a weight keeps the product of its axes' fractions.

    sites: with all of their units. masks: the remaining places on the axes of the model's weights.
    """

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site], masks: Masks):
        self.model, self.sites, self.masks = model, sites, masks
        self._left = {site.name: Remaining(model, site, masks).units for site in sites}

    def parameters(self, widths: Mapping[str, int]) -> float:
        """Return the model's number of parameters if sites had these widths. Other sites keep theirs.

        Adapters do not count: they are no part of the model that is cut.
        """
        shares = self._axis_shares(widths)
        total, seen = 0.0, adapter_weights(self.model)
        for path, module in self.model.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if id(weight) not in seen:
                    seen.add(id(weight))
                    total += self._numel(path, module, name, weight, shares)
        return total

    def _axis_shares(self, widths: Mapping[str, int]) -> AxisShares:
        shares: dict[tuple[str, int], float] = {}
        for site in self.sites:
            units = int(self._left[site.name].sum())
            gone = units - widths.get(site.name, units)
            if not gone:
                continue
            if site.units_are_blocks:
                for path in site.blocks:
                    shares[path, -1] = 1 - gone / units
                continue
            lost: dict[tuple[str, int], float] = {}
            for member in site.members:
                axis = (member.module, member.dim)
                places = len(left_places(member, site.units, self.masks))
                lost[axis] = lost.get(axis, 0) + places * gone / units / self._axis_left(*axis)
            for axis, share in lost.items():
                shares[axis] = shares.get(axis, 1) * (1 - share)
        return shares

    def _axis_left(self, path: str, dim: int) -> int:
        mask = self.masks.get((path, dim))
        return weight_of(self.model.get_submodule(path)).shape[dim] if mask is None else int(mask.sum())

    def _numel(self, path: str, module: nn.Module, name: str, weight: Tensor, shares: AxisShares) -> float:
        """Return the number of remaining elements of one parameter."""
        output = int(isinstance(module, Conv1D))
        axes = {"weight": range(weight.dim()), "bias": [output]}.get(name, [])
        if name == "bias":
            lengths = [self._axis_left(path, output)] if hasattr(module, "weight") else [weight.numel()]
        else:
            lengths = [self._axis_left(path, dim) for dim in axes] or [weight.numel()]
        kept = math.prod(lengths) * math.prod(shares.get((path, dim), 1.0) for dim in axes)
        for site in self.sites:
            if site.units_are_blocks:
                for unit, block in enumerate(site.blocks):
                    if path.startswith(f"{block}."):
                        kept *= shares.get((block, -1), 1.0) * bool(self._left[site.name][unit])
        return kept


def site_parameters(model: PreTrainedModel, sites: Sequence[Site]) -> int:
    """Return the number of parameters that are removed with all units of all sites."""
    count = ParameterCount(model, sites, {})
    return round(count.parameters({}) - count.parameters({site.name: 0 for site in sites}))


def count_parameters(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, int]:
    """Return the number of parameters of the sites (removed with all units), of all blocks, of the model.

    A tied weight counts once, adapters do not count.
    """
    blocks, beside = [model.get_submodule(path) for path in block_modules(model)], adapter_weights(model)

    def size(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters() if id(weight) not in beside)

    return {"sites": site_parameters(model, sites), "blocks": sum(map(size, blocks)), "model": size(model)}


def density(model: PreTrainedModel) -> float:
    """Return the fraction of the weights in the blocks' matrices that are not zero; 1 without blocks."""
    blocks = [model.get_submodule(path) for path in block_modules(model)]
    weights = [weight for block in blocks for weight in block.parameters() if weight.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    return sum(int(weight.count_nonzero()) for weight in weights) / total if total else 1.0
