"""Spans: where in tokens an answer lies, and which answer a model's logits point at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

BEST = 20
"""Beginnings, and ends, that are looked at, as in BERT's own script."""


@dataclass(frozen=True)
class Window:
    """A question with a stretch of its context.

    item: the question's number. offsets: from where to where in the context each token goes; None for
        tokens that are not of it. silence: the place of the token that stands for no answer.
    """

    item: int
    offsets: tuple[tuple[int, int] | None, ...]
    silence: int

    def places(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last token of context[start:end]; twice `silence` unless all of it is here."""
        inside = [
            place
            for place, offset in enumerate(self.offsets)
            if offset is not None and offset[0] < end and offset[1] > start
        ]
        if not inside or self.offsets[inside[0]][0] > start or self.offsets[inside[-1]][1] < end:
            return self.silence, self.silence
        return inside[0], inside[-1]

    def spans(self, starts: Tensor, ends: Tensor, longest: int) -> Iterator[tuple[float, int, int]]:
        """Likely answers: logit, first and last letter. starts, ends: logits [tokens]"""
        firsts, lasts = (one.topk(min(BEST, len(self.offsets))).indices.tolist() for one in (starts, ends))
        for first in firsts:
            for last in lasts:
                begin, stop = self.offsets[first], self.offsets[last]
                if begin and stop and first <= last < first + longest:
                    yield float(starts[first] + ends[last]), begin[0], stop[1]

    def unanswered(self, starts: Tensor, ends: Tensor) -> float:
        """The logit of no answer."""
        return float(starts[self.silence] + ends[self.silence])


def chosen(
    windows: Sequence[Window], logits: Sequence[Tensor], longest: int, may_be_silent: bool
) -> tuple[int, int] | None:
    """From where to where the likeliest answer goes; None for no answer.

    logits: [2, tokens] of each window, at least its length.
    """
    sized = [(window, one[:, : len(window.offsets)]) for window, one in zip(windows, logits, strict=True)]
    found = [span for window, one in sized for span in window.spans(one[0], one[1], longest)]
    if not found:
        return None
    likeliest = max(found)
    if may_be_silent and min(window.unanswered(one[0], one[1]) for window, one in sized) > likeliest[0]:
        return None
    return likeliest[1:]
