"""Spans: the tokens of an answer, and the answer that a model's logits choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

BEST = 20
"""Number of likely first and last tokens to combine, as in BERT's own script."""


@dataclass(frozen=True)
class Window:
    """A question with a part of its context.

    item: the question's index. offsets: each token's [start, end) in the context; None for tokens outside
        the context. silence: the place of the token that stands for no answer.
    """

    item: int
    offsets: tuple[tuple[int, int] | None, ...]
    silence: int

    def places(self, start: int, end: int) -> tuple[int, int]:
        """Return the first and the last token of context[start:end]; twice `silence` if a part is missing."""
        inside = [
            (place, offset)
            for place, offset in enumerate(self.offsets)
            if offset is not None and offset[0] < end and offset[1] > start
        ]
        if not inside or inside[0][1][0] > start or inside[-1][1][1] < end:
            return self.silence, self.silence
        return inside[0][0], inside[-1][0]

    def spans(self, starts: Tensor, ends: Tensor, longest: int) -> Iterator[tuple[float, int, int]]:
        """Yield likely answers: logit, first character, end. starts, ends: logits [tokens]"""
        firsts, lasts = (one.topk(min(BEST, len(self.offsets))).indices.tolist() for one in (starts, ends))
        for first in firsts:
            for last in lasts:
                begin, stop = self.offsets[first], self.offsets[last]
                if begin and stop and first <= last < first + longest:
                    yield float(starts[first] + ends[last]), begin[0], stop[1]

    def unanswered(self, starts: Tensor, ends: Tensor) -> float:
        """Return the logit of no answer. starts, ends: logits [tokens]"""
        return float(starts[self.silence] + ends[self.silence])


def likeliest_span(
    windows: Sequence[Window], logits: Sequence[Tensor], longest: int, may_be_silent: bool
) -> tuple[int, int] | None:
    """Return the likeliest answer's [start, end) in the context; None for no answer.

    logits: [2, tokens] of each window, and padding behind.
    """
    sized = [(window, one[:, : len(window.offsets)]) for window, one in zip(windows, logits, strict=True)]
    found = [span for window, one in sized for span in window.spans(one[0], one[1], longest)]
    if not found:
        return None
    likeliest = max(found)
    if may_be_silent and min(window.unanswered(one[0], one[1]) for window, one in sized) > likeliest[0]:
        return None
    return likeliest[1:]
