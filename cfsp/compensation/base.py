"""What a compensation is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor


class Compensation(ABC):
    """Fills the gap that removed units leave; the plan carries the outcome."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def fill(self, stat: Mapping[str, Tensor]) -> Tensor | None:
        """The constant that each channel is replaced by, or None. [units * span]"""
