"""Released allocators: the rules of released codes, which may miss the budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from cfsp.allocators.base import Allocator, Budget, Scores
from cfsp.model.sites import Site
from cfsp.statistics.base import Stats


@dataclass(frozen=True, kw_only=True)
class ReleasedAllocator(Allocator):
    """The allocation rule of a released code, for comparison; it may miss the budget.

    It rounds as the release does, so neither `round_to` nor `allow_empty` may be set. Such rules are
    allocators of their own (`*_released`), so that the others need no branch for them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.round_to != 1 or self.allow_empty:
            name = type(self).__name__
            raise ValueError(f"{name} rounds as its release does; expected no round_to or allow_empty")

    def check(self, sites: Sequence[Site], budget: Budget) -> None:
        """Raise ValueError if a protected block does not exist; no budget is too small here."""
        self.protected_blocks(sites)

    @abstractmethod
    def allocate(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, int]:
        """Return the number of units to keep per site."""

    def wishes(self, sites: Sequence[Site], scores: Scores, stats: Stats, budget: Budget) -> dict[str, float]:
        return dict(self.allocate(sites, scores, stats, budget))
