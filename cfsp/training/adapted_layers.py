"""Layers with low-rank adapters: the rows of units in them, and what the adapters add there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.sites import Member, Site
from cfsp.model.weights import bias_of, path_outside, weight_of
from cfsp.training.half_space import GroupSums

ADAPTER = "default"
"""peft's name of the adapters that `cfsp.training.lora` attaches."""

LEVELS = 254
"""Parts of the distance between two neighbouring weights; rounding takes half of it at most, so +-127."""


@dataclass
class AdaptedLayer:
    """A linear layer and its adapters: it computes with W + scale B A. All tensors here have outputs first.

    merged: the factors [r, inputs], [outputs, r] that were added to W so far, on the CPU, for restarts.
    """

    linear: nn.Module
    a: nn.Parameter | None
    b: nn.Parameter | None
    scale: float
    merged: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def at(cls, model: PreTrainedModel, path: str) -> AdaptedLayer:
        """Return the layer at a path of `path_inside`, without factors if it has no adapter."""
        linear, outside = model.get_submodule(path), path_outside(path)
        if outside == path:
            return cls(linear, None, None, 0.0)
        a, b = (
            model.get_parameter(f"{outside}.{factor}.{ADAPTER}.weight") for factor in ("lora_A", "lora_B")
        )
        return cls(linear, a, b, float(model.get_submodule(outside).scaling[ADAPTER]))  # pyright: ignore[reportIndexIssue, reportArgumentType]  # a dict of numbers

    @property
    def weight(self) -> Tensor:
        """The weight. [outputs, inputs]"""
        weight = weight_of(self.linear).detach()
        return weight.T if isinstance(self.linear, Conv1D) else weight

    def added(self, places: Tensor) -> Tensor | None:
        """Return what the adapters add to these rows [places, inputs]; None without adapters."""
        if self.a is None or self.b is None:
            return None
        return self.scale * (self.b.detach()[places] @ self.a.detach())

    def sums(self, places: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of W^2, D^2 and W D over each unit's rows; D is never made. [units] x 3"""
        weight = self.weight[places].float()
        found = [weight.square().sum(1), weight.new_zeros(len(places)), weight.new_zeros(len(places))]
        if self.a is not None and self.b is not None:
            a, b = self.a.detach().float(), self.b.detach()[places].float()
            found[1] = self.scale**2 * ((b @ (a @ a.T)) * b).sum(1)
            found[2] = self.scale * ((weight @ a.T) * b).sum(1)
        square, product, inner = (one.view(units, -1).sum(1) for one in found)
        return square, product.clamp_min(0), inner

    def merge(self) -> None:
        """Add the adapters' product to the weight, and begin again from B = 0."""
        if self.a is not None and self.b is not None:
            self.merged.append((self.a.detach().cpu().clone(), self.b.detach().cpu().clone()))
            self.add(self.a.detach(), self.b.detach())
            self.b.zero_()

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add scale B A to the weight. a: [r, inputs]; b: [outputs, r]."""
        weight = self.weight
        weight.copy_(weight.to(a.dtype) + self.scale * (b.to(weight.device) @ a.to(weight.device)))


class UnitRows:
    """The rows of one site's units in the layers that make them."""

    def __init__(self, model: PreTrainedModel, site: Site, layers: Mapping[str, AdaptedLayer]) -> None:
        self.site, self.layers, self.device = site, layers, model.device

    def places(self, member: Member, units: Sequence[int]) -> Tensor:
        """Return the indices of these units' rows. [units * span]"""
        return member.places(units).to(self.device)

    def parts(self) -> list[tuple[AdaptedLayer, Member, bool]]:
        """Return the layer and the member of each run of rows; then, marked True, those that have a bias."""
        found = [(self.layers[member.module], member) for member in self.site.producers]
        biased = [(layer, member, True) for layer, member in found if bias_of(layer.linear) is not None]
        return [(layer, member, False) for layer, member in found] + biased

    def tensors(self, units: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return weight or bias of each part, outputs first [its axes], and the units' rows in it [rows]."""
        found = []
        for layer, member, is_bias in self.parts():
            tensor = bias_of(layer.linear) if is_bias else layer.weight
            assert tensor is not None, "`parts` names a bias only where there is one"
            found.append((tensor.detach(), self.places(member, units)))
        return found

    def take(self, units: Sequence[int], rest: Sequence[Tensor | None] = ()) -> list[Tensor]:
        """Return copies of the rows, and of the biases, in float32 or better. [units, places] each

        rest: what `put` returned, added to them.
        """
        taken = []
        for (tensor, places), more in zip_longest(self.tensors(units), rest):
            rows = tensor[places].to(torch.promote_types(tensor.dtype, torch.float32))
            rows = rows.reshape(len(units), -1)
            taken.append(rows if more is None else rows + more * (spacing(rows, tensor.dtype) / LEVELS))
        return taken

    def put(self, units: Sequence[int], rows: Sequence[Tensor]) -> list[Tensor | None]:
        """Write rows and biases back. rows: [units, places] each, as `take` returns them.

        Returns what the weights are too coarse for, in parts of the distance to the next number, a byte each:
        with it, bfloat16 has 16 bits of precision. None: nothing, because the weights are as fine as the
        rows. [units, places] each
        """
        rest: list[Tensor | None] = []
        for (tensor, places), new in zip(self.tensors(units), rows, strict=True):
            coarse = new.to(tensor.dtype)
            tensor[places] = coarse.view(len(places), *tensor.shape[1:])
            rest.append(None if tensor.dtype == new.dtype else rounded_off(new, coarse))
        return rest

    def added(self, units: Sequence[int]) -> list[Tensor | None]:
        """Return what the adapters add to each of the rows of `take`; None: nothing. [units, places] each"""
        found: list[Tensor | None] = []
        for layer, member, is_bias in self.parts():
            one = None if is_bias else layer.added(self.places(member, units))
            found.append(None if one is None else one.reshape(len(units), -1))
        return found

    def scale_adapters(self, units: Sequence[int], factor: float) -> None:
        """Multiply the rows of B by a factor; 0 makes them exactly zero."""
        for member in self.site.producers:
            layer, places = self.layers[member.module], self.places(member, units)
            if layer.b is not None:
                layer.b.detach()[places] = layer.b.detach()[places] * factor if factor else 0.0

    def sums(self) -> GroupSums:
        """Return the sums that saliencies are made of."""
        units, count, total = self.site.units, 0, []
        for layer, member, is_bias in self.parts():
            if not is_bias:
                total.append(torch.stack(layer.sums(self.places(member, range(units)), units)))
                count += member.span * layer.weight.shape[1]
        weight, product, inner = torch.stack(total).sum(0)
        return GroupSums(weight, product, inner, count)


def rounded_off(fine: Tensor, coarse: Tensor) -> Tensor:
    """Return what rounding took, in parts of the distance between neighbours. [the shape of both], int8"""
    rounded = coarse.to(fine.dtype)
    return ((fine - rounded) / spacing(rounded, coarse.dtype) * LEVELS).round().to(torch.int8)


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance from each number of `dtype` to the next larger one. [the shape of values]"""
    coarse, fine = torch.finfo(dtype), torch.finfo(values.dtype)
    least = max(coarse.smallest_normal * coarse.eps, fine.tiny)
    return torch.ldexp(torch.full_like(values, coarse.eps), values.frexp().exponent - 1).clamp_min(least)
