"""Metrics: how good answers are, as scikit-learn and SciPy define it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from cfsp.data.tasks.base import Score

Metric = Callable[[np.ndarray, np.ndarray], float]

OF_LABELS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": lambda right, said: f1_score(right, said, average="binary", zero_division=0),
    "f1_macro": lambda right, said: f1_score(right, said, average="macro", zero_division=0),
    "matthews": matthews_corrcoef,
}
"""Of labels. f1 is that of label 1, as GLUE has it; f1_macro the mean over all labels."""

OF_NUMBERS: dict[str, Metric] = {
    "pearson": lambda right, said: pearsonr(right, said).statistic,
    "spearman": lambda right, said: spearmanr(right, said).statistic,
}
"""Of numbers. They are 0 here where all that a model says is the same."""

DRAWS, SEED = 100, 0


def scored(metric: Metric, right: Sequence[float], said: Sequence[float]) -> Score:
    """A metric; stderr by the bootstrap, over 100 draws of as many answers."""
    truth, guess = np.asarray(right), np.asarray(said)
    dice = np.random.default_rng(SEED)
    drawn = (dice.integers(len(truth), size=len(truth)) for _ in range(DRAWS))
    values = [value(metric, truth[rows], guess[rows]) for rows in drawn]
    return Score(value(metric, truth, guess), float(np.std(values, ddof=1)), len(truth))


def value(metric: Metric, right: np.ndarray, said: np.ndarray) -> float:
    if right.dtype.kind == "f" and (np.ptp(right) == 0 or np.ptp(said) == 0):
        return 0.0
    return float(metric(right, said))


def mean(values: Sequence[float]) -> Score:
    """The mean of what each answer is worth, and its standard error."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Score(float(np.mean(values)), error, n)
