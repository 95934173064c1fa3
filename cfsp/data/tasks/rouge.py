"""ROUGE: words and word sequences that two texts share, by the package rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""Shared words, shared pairs of words, the longest common subsequence of texts, and of their lines."""


def rouge(
    names: Sequence[str], right: Sequence[str], said: Sequence[str], stemmer: bool
) -> dict[str, list[float]]:
    """Return name -> the F-measure of each text. stemmer: compare words by their Porter stems."""
    scorer = RougeScorer([*names], use_stemmer=stemmer)
    found = [scorer.score(*pair) for pair in zip(right, said, strict=True)]
    return {name: [one[name].fmeasure for one in found] for name in names}
