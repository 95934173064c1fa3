"""Chance: the baseline that every criterion must beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cfsp.criteria.base import EVERY_KIND, Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class Chance(Criterion):
    """score_u is uniform in [0, 1) and depends on the seed and the site's name only."""

    seed: int = 0
    kinds: ClassVar[frozenset[str]] = EVERY_KIND

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        # Hash both into 32 bits: torch's CPU generator ignores the higher bits of a seed.
        key = zlib.crc32(f"{self.seed} {view.name}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.rand(view.units, generator=generator)
