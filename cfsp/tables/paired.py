"""Paired comparison: two models on the same questions or windows, with a test and an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

from cfsp.records.outcomes import Kind, Outcomes

LEVEL = 0.05
"""Differences are called distinguishable below this p, or where the interval of 1 - LEVEL leaves out 0."""
DRAWS = 10_000


@dataclass(frozen=True)
class Paired:
    """What two models did with the same items; differences are the other minus the one.

    one, other: means. low, high: interval of the difference; None with a single item. p: of McNemar's exact
    test, for right and wrong answers. lost, won: answers that were right with the one alone, with the other
    alone.
    """

    kind: Kind
    n: int
    one: float
    other: float
    low: float | None
    high: float | None
    p: float | None = None
    lost: int = 0
    won: int = 0

    @property
    def difference(self) -> float:
        return self.other - self.one

    @property
    def flips(self) -> float | None:
        """The fraction of questions whose answer changed between right and wrong."""
        return None if self.p is None else (self.lost + self.won) / self.n

    @property
    def distinguishable(self) -> bool:
        """Whether the data tells the models apart; one item never does."""
        if self.p is not None:
            return self.p < LEVEL
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def paired(one: Outcomes, other: Outcomes) -> Paired:
    """Compare two models item by item.

    Right and wrong answers: p is the exact binomial one of the discordant pairs, the interval the 2.5 and
    97.5 percentiles of a paired bootstrap. Means of windows: Student's interval of the mean difference, in
    nats the interval of the difference of log-perplexities.

    Raises:
        ValueError: the outcomes are of different questions or windows.
    """
    check_items(one, other)
    first, second = (in_order(outcomes) for outcomes in (one, other))
    n, means = len(first), (float(first.mean()), float(second.mean()))
    if one.kind != "correct":
        return Paired(one.kind, n, *means, *student(second - first))
    lost, won = int((first > second).sum()), int((second > first).sum())
    p = float(binomtest(min(lost, won), lost + won).pvalue) if lost + won else 1.0
    return Paired(one.kind, n, *means, *bootstrap(lost, won, n), p, lost, won)


def check_items(one: Outcomes, other: Outcomes) -> None:
    """Raise ValueError unless both are of the same kind and the same items."""
    if one.kind != other.kind:
        raise ValueError(f"outcomes of kinds {one.kind} and {other.kind}; expected the same")
    if not one.items:
        raise ValueError("outcomes of no question; expected one at least")
    if sorted(one.items) != sorted(other.items):
        common = len({*one.items} & {*other.items})
        raise ValueError(
            f"outcomes of different questions or windows: {len(one.items)} and {len(other.items)}, "
            f"{common} in common; expected two runs on the same file, with the same limit, tokenizer and "
            "windows"
        )


def in_order(outcomes: Outcomes) -> np.ndarray:
    """Return the values in the order of their items' names; equal items keep theirs. [items]"""
    values = np.asarray(outcomes.values, dtype=float)
    return values[np.argsort(np.asarray(outcomes.items), kind="stable")]


def bootstrap(lost: int, won: int, n: int) -> tuple[float, float]:
    """Return the percentile interval of (won - lost) / n over resampled questions.

    Resampled questions have multinomial counts of lost, won and unchanged answers, so these are drawn.
    """
    dice = np.random.default_rng(0)
    counts = dice.multinomial(n, [lost / n, won / n, 1 - (lost + won) / n], size=DRAWS)
    low, high = np.quantile((counts[:, 1] - counts[:, 0]) / n, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def student(differences: np.ndarray) -> tuple[float | None, float | None]:
    """Return Student's interval of the mean. differences: [windows]"""
    n = len(differences)
    if n < 2:
        return None, None
    reach = student_factor(n) * float(differences.std(ddof=1)) / math.sqrt(n)
    mean = float(differences.mean())
    return mean - reach, mean + reach


def student_factor(n: int) -> float:
    """Return how many standard errors an interval of 1 - LEVEL reaches, of a mean of n values."""
    return float(t.ppf(1 - LEVEL / 2, n - 1))
