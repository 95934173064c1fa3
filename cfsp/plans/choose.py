"""Choose."""

from __future__ import annotations

import torch
from torch import Tensor


def best_units(score: Tensor, count: int, groups: int = 1) -> tuple[int, ...]:
    """The `count` highest scores, as many of each of so many equal runs; rising.

    Of equal scores the first. Exact, unlike a threshold.
    """
    order = score.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    first = torch.arange(groups)[:, None] * (len(score) // groups)
    return tuple(sorted((order.cpu() + first).flatten().tolist()))
