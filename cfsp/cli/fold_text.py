"""Fold text: break the cells of a table between words and parts of names, never inside them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

PIECES = (r"[^\s/:@]*[/:@]+\s*|[^\s/:@]+\s*|\s+", r"[^_]*_+\s*|[^_]+")
"""Where a text may be broken: at a space or after one of / : @; only if that does not do, after _ too."""

LONGEST = 20
"""Characters that a column keeps together at most; a longer word is broken where the column ends."""


def fold_text(text: str, width: int) -> str:
    """Return a text in lines of at most `width` characters; a part that is longer has a line of its own."""
    return "\n".join(line for whole in text.split("\n") for line in fold_line(whole, width))


def fold_line(text: str, width: int) -> list[str]:
    lines = [""]
    for piece in re.findall(PIECES[0], text):
        fits = cell_len(piece.rstrip()) <= width
        for part in [piece] if fits else re.findall(PIECES[1], piece):
            if lines[-1].strip() and cell_len((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def least_width(text: str) -> int:
    """Return the width of the longest part of a text that is not broken."""
    return max((cell_len(line) for line in fold_text(text, 1).split("\n")), default=0)


def full_width(text: str) -> int:
    return max((cell_len(line) for line in text.split("\n")), default=0)


def column_widths(texts: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return how wide each column is made, together at most `room`; None if the columns do not fit.

    Narrow columns become as wide as their texts; the others share what is left evenly.
    texts: of each column, the heading too.
    """
    widths = [min(LONGEST, max(map(least_width, column))) for column in texts]
    wanted = [max(map(full_width, column)) for column in texts]
    if sum(widths) > room:
        return None
    while spare := room - sum(widths):
        open_ones = [place for place, width in enumerate(widths) if width < wanted[place]]
        if not open_ones:
            break
        for place in open_ones[:spare]:
            widths[place] += min(max(1, spare // len(open_ones)), wanted[place] - widths[place])
    return widths
