"""Method: the parts that a schedule decides with."""

from __future__ import annotations

from dataclasses import dataclass

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion


@dataclass(frozen=True)
class Method:
    """A criterion that scores units, an allocator that sets widths, and a compensation for removed units."""

    criterion: Criterion
    allocator: Allocator
    compensation: Compensation

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that the parts need."""
        return self.criterion.needs | self.allocator.needs | self.compensation.needs
