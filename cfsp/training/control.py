"""Control: one number steers a penalty until the model has the share that is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Controller:
    """Multiplies the weight of a penalty by exp(gain * (error + the integral of the error over progress)).

    The papers' penalties reach a share that nobody can tell before; this one reaches the share that is
    asked, or says how far it came. The error is target * due - measured. Progress, not steps, is what the
    integral runs over, so that one gain suits short and long training.

    target: the share to be gone at the end. most: the largest factor, and the inverse of the least.
    """

    target: float
    gain: float = 10.0
    most: float = 1e3
    error: float = field(default=0.0)
    integral: float = field(default=0.0)
    progress: float = field(default=0.0)

    def step(self, measured: float, due: float, progress: float) -> None:
        """Take note of the share that is gone. due: how much of the target should be by now, in [0, 1]."""
        self.error = self.target * due - measured
        self.integral += self.error * (progress - self.progress)
        self.progress = progress

    @property
    def factor(self) -> float:
        """What the penalty's own weight is multiplied by."""
        bound = math.log(self.most)
        return math.exp(min(max(self.gain * (self.error + self.integral), -bound), bound))


def cubic(progress: float, first: float, last: float) -> float:
    """How much is due: 0 until `first`, 1 from 1 - `last` on, 1 - (1 - x)^3 between (arXiv:1710.01878).

    progress: share of the steps that are done. first, last: shares of the steps before and after the rise.
    """
    if progress <= first:
        return 0.0
    if progress >= 1 - last:
        return 1.0
    return 1 - (1 - (progress - first) / (1 - first - last)) ** 3
