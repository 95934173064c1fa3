"""Control: one number steers a penalty until the model has lost the share that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE = 5.0
"""An error that lasts for 1 / RATE of the training counts twice."""


@dataclass
class Controller:
    """Multiplies a penalty by exp(gain * (error + RATE * the integral of the error over progress)).

    The penalties of the papers lead to a share that nobody knows beforehand; this one leads to the share
    that is asked for. The error is target * due - measured. The integral runs over progress in [0, 1], not
    over steps, so that one gain suits short and long training.

    target: the share to remove by the end. most, least: bounds of the factor.
    """

    target: float
    gain: float = 10.0
    most: float = 1e3
    least: float = 1e-3
    error: float = 0.0
    integral: float = 0.0
    progress: float = 0.0

    def step(self, measured: float, due: float, progress: float) -> None:
        """Take in the measured share. due: the part of the target that is due by now, in [0, 1]."""
        self.error = self.target * due - measured
        if self.least < self.factor < self.most or self.error * self.integral < 0:
            self.integral += self.error * (progress - self.progress)  # not while the factor is at its bound
        self.progress = progress

    @property
    def factor(self) -> float:
        """What the penalty is multiplied by."""
        wanted = self.gain * (self.error + RATE * self.integral)
        if wanted >= math.log(self.most):
            return self.most
        return self.least if wanted <= math.log(self.least) else math.exp(wanted)


def cubic(progress: float, first: float, last: float) -> float:
    """Return the part that is due: 0 until `first`, 1 from 1 - `last` on, 1 - (1 - x)^3 between.

    progress: share of the steps that are done. first, last: shares of the steps before and after the rise
    (Zhu and Gupta, arXiv:1710.01878).
    """
    if progress <= first:
        return 0.0
    if progress >= 1 - last:
        return 1.0
    return 1 - (1 - (progress - first) / (1 - first - last)) ** 3
