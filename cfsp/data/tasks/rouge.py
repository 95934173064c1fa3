"""ROUGE: words and word sequences that two texts share, by the package rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""Shared words, shared pairs of words, the longest common subsequence of texts, and of their lines."""


def rouge(
    names: Sequence[str], references: Sequence[Sequence[str]], said: Sequence[str], stemmer: bool
) -> dict[str, list[float]]:
    """Return name -> the F-measure of each text with the best of its references.

    stemmer: compare words by their Porter stems.
    """
    scorer = RougeScorer([*names], use_stemmer=stemmer)
    found = [scorer.score_multi(*pair) for pair in zip(references, said, strict=True)]
    return {name: [one[name].fmeasure for one in found] for name in names}
