"""Control: one number steers a penalty until the model has the share that is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Controller:
    """Multiplies the weight of a penalty by exp(gain * (target - measured)) at every step.

    The papers' penalties reach a share that nobody can tell before; this one reaches the share that is
    asked, or says how far it came.

    target: of the share to be gone at the end. gain: of the logarithm of the weight, per step. most: the
        largest factor by which the weight may rise or fall.
    """

    target: float
    gain: float = 0.5
    most: float = 1e4
    log_factor: float = field(default=0.0)
    measured: float = field(default=0.0)

    def step(self, measured: float, progress: float) -> None:
        """Take note of the share that is gone. progress: how much of the target is due by now, in [0, 1]."""
        self.measured = measured
        self.log_factor += self.gain * (self.target * progress - measured)
        bound = math.log(self.most)
        self.log_factor = min(max(self.log_factor, -bound), bound)

    @property
    def factor(self) -> float:
        """What the penalty's own weight is multiplied by."""
        return math.exp(self.log_factor)


def cubic(progress: float, first: float, last: float) -> float:
    """How much is due: 0 until `first`, 1 from 1 - `last` on, 1 - (1 - x)^3 between (arXiv:1710.01878).

    progress: share of the steps that are done. first, last: shares of the steps before and after the rise.
    """
    if progress <= first:
        return 0.0
    if progress >= 1 - last:
        return 1.0
    return 1 - (1 - (progress - first) / (1 - first - last)) ** 3
