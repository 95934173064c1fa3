"""Options of LTE's routers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.options import Checked
from cfsp.plans.grouping import GROUPINGS

INITIAL = ("activations", "random")
"""What routers know at the beginning: which experts are the most active for an input, or nothing."""


@dataclass(frozen=True, kw_only=True)
class RoutingOptions(Checked):
    """How routers begin and learn; see `cfsp.training.routing.Routing`.

    expert_size: neurons that are chosen together. grouping: which neurons these are; see `grouping`.
    efficiency: eta before the controller's factor. separability: lambda. most: the largest eta; above it all
        scores collapse before lambda can part them.
    threshold: t. guard: see above. initial: what routers know at the beginning; see `INITIAL`.
    start: added to the routers' biases at the beginning.
    adaptation: fraction of the steps of the second stage. learning_rate: of the routers.
    gain: of the controller. few: see `RoutedMLP`.
    """

    expert_size: int = 32
    grouping: str = "kmeans"
    efficiency: float = 0.5
    most: float = 1.0
    separability: float = 0.05
    threshold: float = 0.5
    guard: float = 1e-2
    initial: str = "activations"
    start: float = 2.0
    adaptation: float = 0.4
    learning_rate: float = 5e-3
    gain: float = 10.0
    few: int = 4

    def __post_init__(self) -> None:
        check_choice("grouping", self.grouping, GROUPINGS)
        check_choice("initial", self.initial, INITIAL)
        for name in ("expert_size", "few"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("separability", "gain", "learning_rate"):
            check_number(name, getattr(self, name), least=0)
        for name in ("threshold", "adaptation"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name):g}; expected one in (0, 1)")
        for name in ("guard", "efficiency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g}; expected more than 0")
        if self.most < self.efficiency:
            raise ValueError(
                f"most={self.most:g} is below efficiency={self.efficiency:g}; expected at least that"
            )
        first = (1 + math.tanh(self.start / 2)) / 2
        well_above = self.threshold + 0.2 * (1 - self.threshold)
        if first < well_above:
            least = math.log(well_above / (1 - well_above))
            raise ValueError(
                f"start={self.start:g}: scores begin at {first:.2f}, and the separability term has its pole "
                f"at threshold={self.threshold:g}; expected scores well above it: start={least + 0.005:.2f} "
                "or more"
            )
