"""Method: the parts with which a schedule decides."""

from __future__ import annotations

from dataclasses import dataclass

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion


@dataclass(frozen=True)
class Method:
    """Which units matter, how many each site keeps, and what stands for those that go."""

    criterion: Criterion
    allocator: Allocator
    compensation: Compensation

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that the parts read."""
        return self.criterion.needs | self.allocator.needs | self.compensation.needs
