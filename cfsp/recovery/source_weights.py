"""Source weights: how many examples of each source a round of dynamic recovery trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


def round_weights(gaps: Mapping[str, float], balance: float) -> dict[str, float]:
    """Return source -> fraction of the examples: (1 - balance) gap / sum of gaps + balance / sources."""
    total = sum(gaps.values())
    even = 1 / len(gaps)
    return {
        name: (1 - balance) * (gap / total if total else even) + balance * even for name, gap in gaps.items()
    }


def whole_counts(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Return whole numbers in proportion to weights that sum to `total`, by largest remainders."""
    exact = {name: weight * total for name, weight in weights.items()}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    order = sorted(counts, key=lambda name: counts[name] - exact[name])  # stable: of equals the first
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@dataclass
class Pools:
    """Draws training examples of each source without repeating one until the source is used up.

    indices: source -> indices of its examples, in the order in which they are drawn.
    """

    indices: Mapping[str, Sequence[int]]
    at: dict[str, int] = field(default_factory=dict)

    def draw(self, counts: Mapping[str, int]) -> dict[str, list[int]]:
        """Return source -> as many indices as are asked for; a source that is used up begins anew."""
        drawn = {}
        for name, count in counts.items():
            pool, start = self.indices[name], self.at.get(name, 0)
            drawn[name] = [pool[(start + step) % len(pool)] for step in range(count)]
            self.at[name] = (start + count) % len(pool)
        return drawn
