"""Half-space projection: shrink groups of weights to zero, and project those that turn (LHSPG's trial step).

A group is a unit's rows in several weights (Chen et al., LoRAShear, arXiv:2310.18356, Algorithm 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PROXIES = ("magnitude", "avg_magnitude", "cosine_similarity", "taylor_first", "taylor_second")
"""Names of the saliencies of a group; each is low where the group is redundant."""

TINY = 1e-8
"""Keeps a cosine finite where a group or its product is zero."""


def group_norms(rows: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each group. rows: [units, places of the group] each. -> [units]"""
    return torch.stack([one.square().sum(1) for one in rows]).sum(0).sqrt()


def half_space_step(
    rows: Sequence[Tensor], added: Sequence[Tensor | None], shrink: Tensor, epsilon: float
) -> tuple[list[Tensor], Tensor]:
    """Return the rows after one trial step and its projection [units, places] each, and what was projected.

    x' = x + d - shrink x / |x|, with d what the adapters add; x' = 0 if <x', x> < epsilon |x|^2. A group that
    is zero stays zero. The second value says which groups the projection set to zero. [units], bool

    rows: a group's weights x, added: their d or None for zero. shrink: [units].
    """
    norm = group_norms(rows)
    factor = (1 - shrink / norm.clamp_min(torch.finfo(norm.dtype).tiny))[:, None]
    trial = [x * factor if d is None else x * factor + d for x, d in zip(rows, added, strict=True)]
    inner = torch.stack([(new * x).sum(1) for new, x in zip(trial, rows, strict=True)]).sum(0)
    stays = (inner >= epsilon * norm.square()) & (norm > 0)
    zero = torch.zeros((), dtype=norm.dtype, device=norm.device)
    return [torch.where(stays[:, None], new, zero) for new in trial], ~stays & (norm > 0)


@dataclass(frozen=True)
class GroupSums:
    """Sums over a group's places of the weights W and of the adapters' product D. [units] each

    weight: W^2. product: D^2. inner: W D. count: number of places, the same for all units.
    """

    weight: Tensor
    product: Tensor
    inner: Tensor
    count: int

    def saliencies(self) -> dict[str, Tensor]:
        """Return proxy -> saliency of each unit. [units]"""
        weight, product = self.weight.sqrt(), self.product.sqrt()
        return {
            "magnitude": weight,
            "avg_magnitude": weight / self.count,
            "cosine_similarity": self.inner / ((weight + TINY) * (product + TINY)) + 1,
            "taylor_first": self.inner.abs(),
            "taylor_second": self.inner.square() / 2,
        }


def mixed_saliency(
    sums: Mapping[str, GroupSums], alive: Mapping[str, Tensor], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return site -> weighted sum of the proxies, each divided by its norm over all living units. [units]

    alive: site -> which units count for the norms [units], bool. weights: proxy -> weight.
    """
    found = {site: one.saliencies() for site, one in sums.items()}
    total = {site: torch.zeros_like(one.weight) for site, one in sums.items()}
    for proxy, weight in weights.items():
        size = overall_norm(found[site][proxy][alive[site]] for site in sums)
        for site in sums if size > 0 else ():  # without a product yet, Taylor's say nothing
            total[site] += weight * found[site][proxy] / size
    return total


def overall_norm(parts: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of several vectors together."""
    return float(sum(float(one.double().square().sum()) for one in parts)) ** 0.5
