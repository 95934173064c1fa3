"""Choosing: the units with the highest scores."""

from __future__ import annotations

import torch
from torch import Tensor


def best_units(score: Tensor, count: int, groups: int = 1) -> tuple[int, ...]:
    """Return the `count` units with the highest scores, sorted; equally many of each of `groups` equal runs.

    Of equal scores the first is taken. The count is exact, unlike that of a threshold.
    """
    order = score.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    first = torch.arange(groups)[:, None] * (len(score) // groups)
    return tuple(sorted((order.cpu() + first).flatten().tolist()))
