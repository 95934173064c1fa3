"""No compensation: a removed unit counts as zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cfsp.compensation.base import Compensation


class NoCompensation(Compensation):
    """A removed unit's activation counts as zero."""

    def fill(self, stat: Mapping[str, Tensor]) -> Tensor | None:
        return None
