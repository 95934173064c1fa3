"""What a page is made of: sections of figures and tables whose cells know how to be sorted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cfsp.comparison import Spread


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number or word to sort by; nothing to sort by comes last.

    details: a long text that opens on demand. best: whether it stands out.
    """

    text: str
    order: float | str | None = None
    details: str | None = None
    best: bool = False

    @property
    def number(self) -> bool:
        return isinstance(self.order, int | float)


@dataclass(frozen=True)
class Table:
    """A sortable table. columns: heading -> what it means, shown where the pointer rests."""

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Plot:
    """A figure and the sentence below it. name: of its files and ids."""

    name: str
    figure: Figure
    label: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page. model: the heading that it stands under; facts: what its numbers depend on;
    notes: lines that stand out.
    """

    id: str
    title: str
    model: str
    intro: str
    facts: Mapping[str, Any]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


MISSING = Cell("–")


def word(text: str) -> Cell:
    return Cell(text, text.lower())


def number(value: float | None, form: str = ",.4g") -> Cell:
    if value is None:
        return MISSING
    return Cell(format(value, form), finite(value))


def share(value: float) -> Cell:
    return Cell(f"{value:.1%}", value)


def spread(value: Spread, best: bool = False) -> Cell:
    """Mean ± standard deviation, to four digits of the mean."""
    digits = max(0, 4 - len(f"{abs(value.mean):.0f}")) if abs(value.mean) >= 1 else 4
    text = f"{value.mean:,.{digits}f}"
    if value.std is not None:
        text += f" ± {value.std:,.{digits}f}"
    return Cell(text, finite(value.mean), best=best)


def finite(value: float) -> float | None:
    """What to sort by: infinity and NaN come last, as what is missing does."""
    return value if math.isfinite(value) else None
