"""Compared answers: which of a model's answers are compared with the dense model's."""

from __future__ import annotations

from dataclasses import dataclass

from cfsp.checks import check_integer

WHOLE = 4 * 2**30
"""Bytes up to which the log probabilities of all tokens are kept by default."""

TOP, POSITIONS = 256, 128
"""What is compared by default where they take more."""


@dataclass(frozen=True)
class ComparedAnswers:
    """What of a model's answers is compared; 0: all. None: all if that takes at most `WHOLE` bytes.

    top: the dense model's likeliest tokens at each position; all others together count as one more. None: all
        tokens, or `TOP`.
    positions: of each window, drawn once by chance; the head reads no others. None: all, or `POSITIONS`.
    """

    top: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        for name in ("top", "positions"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=0)

    def limits(self, whole: int) -> tuple[int, int]:
        """Return `top` and `positions` where all log probabilities would take `whole` bytes."""
        top, positions = (0, 0) if whole <= WHOLE else (TOP, POSITIONS)
        return top if self.top is None else self.top, positions if self.positions is None else self.positions


def kept_bytes(answers: int, choices: int, top: int = 0) -> int:
    """Return the bytes that the dense model's log probabilities take. choices: size of the vocabulary"""
    return answers * (4 * choices if not 0 < top < choices else 4 * (top + 1) + 4 * top)
