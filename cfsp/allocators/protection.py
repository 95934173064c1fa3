"""Protection: sites that keep everything, by the knowledge analysis."""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = "a list of block numbers, such as [0,-1], or knowledge"


@dataclass(frozen=True)
class Protected:
    """Sites that keep everything, as the knowledge analysis found them. of: the number of all sites."""

    sites: frozenset[str]
    of: int

    def __str__(self) -> str:
        return f"knowledge ({len(self.sites)} of {self.of} sites: {', '.join(sorted(self.sites))})"
