"""Metrics: compare a model's answers with the labels, as scikit-learn and SciPy do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from cfsp.data.tasks.base import Score

Metric = Callable[[np.ndarray, np.ndarray], Any]

EMPTY: dict[str, Any] = {"zero_division": 0}
"""The value of F1 if there is no such label. scikit-learn declares it as text."""

OF_LABELS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, average="binary", **EMPTY),
    "f1_macro": partial(f1_score, average="macro", **EMPTY),
    "matthews": matthews_corrcoef,
}
"""Metrics of labels. f1 is the F1 of label 1, as in GLUE; f1_macro is the mean over all labels."""

OF_NUMBERS: dict[str, Metric] = {
    "pearson": lambda right, said: pearsonr(right, said)[0],
    "spearman": lambda right, said: spearmanr(right, said)[0],
}
"""Metrics of numbers. They are 0 if all of the model's answers are the same."""

DRAWS, SEED = 100, 0


def scored(metric: Metric, right: Sequence[float], said: Sequence[float]) -> Score:
    """Return a metric. Its stderr is the bootstrap's, over 100 draws of as many answers."""
    truth, guess = np.asarray(right), np.asarray(said)
    dice = np.random.default_rng(SEED)
    drawn = (dice.integers(len(truth), size=len(truth)) for _ in range(DRAWS))
    values = [metric_value(metric, truth[rows], guess[rows]) for rows in drawn]
    return Score(metric_value(metric, truth, guess), float(np.std(values, ddof=1)), len(truth))


def metric_value(metric: Metric, right: np.ndarray, said: np.ndarray) -> float:
    if right.dtype.kind == "f" and (np.ptp(right) == 0 or np.ptp(said) == 0):
        return 0.0
    return float(metric(right, said))


def mean(values: Sequence[float]) -> Score:
    """Return the mean over answers, and its standard error."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Score(float(np.mean(values)), error, n)
