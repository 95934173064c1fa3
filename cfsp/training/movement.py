"""Movement pruning: mask units and tiles whose weights move towards zero while the model trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.model.weights import weight_of
from cfsp.training.movement_masks import MovementPruning, scored_layers
from cfsp.training.movement_options import KINDS, MovementOptions
from cfsp.training.pruner import Decide, Pruner


@dataclass(frozen=True, kw_only=True)
class Movement(MovementOptions, Pruner):
    """Learns scores together with the weights, per unit or per tile (Lagunas et al., arXiv:2109.04838).

    When the cool-down begins, the masks are decided for good: the allocator closes exactly the asked share,
    by the scores, and the weights train on with the cut that is made.

    Differs from the released code: the share does not depend on lambda alone. A neuron's gate lies on the
    consumer's input alone, not on the producers' rows too, so the gradient of its score is that of fc2's
    column; Adam normalises the scale. Whether the missing part of fc1's row matters was not measured. A head
    goes if its values or its outputs are masked; the release also requires masked queries and keys, which
    change what a head computes but do not make it zero.
    """

    @property
    def learns(self) -> bool:
        return self.kind.learned

    def check(self, model: PreTrainedModel, sites: Sequence[Site], adapted: Collection[str] = ()) -> None:
        for site in sites:
            if site.kind not in KINDS:
                raise ValueError(
                    f"movement pruning scores {' and '.join(KINDS)}; leave {site.kind!r} out of sites"
                )
            tile = self.tile_of(site)
            for path in scored_layers(site) if tile else ():
                rows, columns = weight_of(model.get_submodule(path)).shape
                if tile and (rows % tile or columns % tile):
                    raise ValueError(
                        f"tile={tile}: {path} is {rows} x {columns}; expected a tile that divides both "
                        f"sides, for instance {largest_tile(rows, columns, tile)}, or variant=struct"
                    )

    def attach(
        self, model: PreTrainedModel, sites: Sequence[Site], target: float, decide: Decide
    ) -> MovementPruning:
        return MovementPruning(self, model, sites, target, decide)


def largest_tile(rows: int, columns: int, most: int) -> int:
    """Return the largest side of at most `most` that divides both."""
    common = math.gcd(rows, columns)
    return max(side for side in range(1, most + 1) if common % side == 0)
