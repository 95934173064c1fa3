"""Control: adapt the weight of a penalty until the masks remove the requested fraction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Controller:
    """Multiplies the weight of a penalty by exp(gain * (error + the integral of the error over progress)).

    With the papers' penalties, nobody knows before the training what fraction they will remove. The
    controller steers towards the requested fraction. The error is target * due - measured. The integral
    runs over progress, not over steps, so that one gain fits short and long trainings.

    target: the fraction to remove by the end. most: the largest factor; the smallest one is its inverse.
    """

    target: float
    gain: float = 10.0
    most: float = 1e3
    error: float = field(default=0.0)
    integral: float = field(default=0.0)
    progress: float = field(default=0.0)

    def step(self, measured: float, due: float, progress: float) -> None:
        """Update the error. measured: fraction removed now. due: fraction of the target due by now."""
        self.error = self.target * due - measured
        self.integral += self.error * (progress - self.progress)
        self.progress = progress

    @property
    def factor(self) -> float:
        """The number to multiply the penalty's own weight by."""
        bound = math.log(self.most)
        return math.exp(min(max(self.gain * (self.error + self.integral), -bound), bound))


def cubic(progress: float, first: float, last: float) -> float:
    """Return what is due: 0 until `first`, 1 from 1 - `last` on, 1 - (1 - x)^3 between (arXiv:1710.01878).

    progress: fraction of the steps that are done. first, last: fractions of the steps before and after the
        rise.
    """
    if progress <= first:
        return 0.0
    if progress >= 1 - last:
        return 1.0
    return 1 - (1 - (progress - first) / (1 - first - last)) ** 3
