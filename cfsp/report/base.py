"""The parts of a page: sections with figures and sortable tables."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib.figure import Figure

from cfsp.records.failures import Failure
from cfsp.records.protocols import hash_text
from cfsp.records.record import Record
from cfsp.records.wanted import Wanted
from cfsp.report.groups import Spread
from cfsp.report.paths import hide_paths, without_paths


@dataclass(frozen=True)
class Cell:
    """A text and the number or word to sort by.

    order: None sorts last; "" sorts by the text. details: a long text that opens on demand. best: whether
    the cell is highlighted.
    """

    text: str
    order: float | str | None = None
    details: str | None = None
    best: bool = False

    @property
    def attributes(self) -> str:
        """The HTML attributes of the cell. They are short, because pages have many cells."""
        look = " ".join(["best"] * self.best + ["long"] * (len(self.text) > 44))
        order = f"{self.order:.9g}" if isinstance(self.order, int | float) else '""'
        return (f' class="{look}"' if look else "") + ("" if self.order == "" else f" data-order={order}")


@dataclass(frozen=True)
class Table:
    """A sortable table. columns: heading -> its meaning, shown as a tooltip."""

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]

    @property
    def headings(self) -> list[tuple[str, str, bool]]:
        """Name and meaning of each column, and whether it has numbers, which are aligned right."""
        first = self.rows[0] if self.rows else [MISSING] * len(self.columns)
        return [
            (name, meaning, cell.order != "")
            for (name, meaning), cell in zip(self.columns.items(), first, strict=True)
        ]

    @property
    def details(self) -> dict[str, list[Any]]:
        """The details of all cells, in order."""
        return pack_texts([cell.details for row in self.rows for cell in row if cell.details is not None])


@dataclass(frozen=True)
class Plot:
    """A figure and its caption. name: for its files and ids."""

    name: str
    figure: Figure
    label: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page. model: the heading above it; facts: what its numbers depend on; notes: highlighted
    lines.
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
    return Cell(hide_paths(text), "")


def measured(title: str) -> str:
    """Return a measure's name in words: `perplexity/files:a.txt` becomes `perplexity on a.txt`."""
    return title.replace("perplexity/", "perplexity on ", 1).replace(" files:", " ", 1)


def protocol_text(key: str, value: Any) -> str:
    """Return a protocol's value as text. Hashes are cut to eight characters."""
    return hide_paths(hash_text(value) if key.endswith("_sha256") else str(value).removeprefix("files:"))


def pack_texts(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return similar texts in a compact form that stores each word once.

    words: all words, with the white space after them. texts: the runs of words in each text, as first index
        and length: [0, 5, 9, 1] means words 0 to 4, then word 9.
    """
    places: dict[tuple[str, int], int] = {}
    runs: list[list[int]] = []
    for text in texts:
        run: list[int] = []
        counts: Counter[str] = Counter()
        for one in re.findall(r"\s*\S+\s*", text):
            # A word that is repeated in a text has an index per repetition, so that runs are long.
            place = places.setdefault((one, counts[one]), len(places))
            counts[one] += 1
            if run and place == run[-2] + run[-1]:
                run[-1] += 1
            else:
                run += [place, 1]
        runs.append(run)
    return {"words": [one for one, _ in places], "texts": runs}


def number(value: float | None, form: str = ",.4g") -> Cell:
    if value is None:
        return MISSING
    return Cell(format(value, form), finite(value))


def share(value: float) -> Cell:
    return Cell(f"{value:.1%}", value)


ACTIVE = {"active": "measured share of the MLPs' units that a token uses; – where all are"}
"""The column of `used`, in tables with routed models."""


def used(active: float) -> Cell:
    """Return the share of its units that a token uses; nothing if it is not known or all are used."""
    return share(active) if active < 1 else MISSING


def in_common(routed: bool) -> str:
    """Return what methods of one contest have in common. routed: whether any of them routes."""
    return "lost and use alike shares" if routed else "lost alike shares"


def asked(wanted: Wanted) -> Cell:
    """Return what was asked for: a fraction in per cent, with as few digits as possible, or a target."""
    return Cell(wanted.text, wanted.less)


def details(one: Record | Failure) -> str:
    """Return the command, if there was one, and the config. Absolute paths are cut."""
    parts = [f"{json.dumps(key)}: {indented(json.dumps(value))}" for key, value in one.config.items()]
    config = ",\n ".join(parts)
    return f"{hide_paths(one.command or '')}\n\n{{\n {config}\n}}".lstrip()


@lru_cache(maxsize=4096)
def indented(part: str) -> str:
    """Return a part of a config, indented. Cached, because runs share most parts and indenting is slow."""
    return json.dumps(without_paths(json.loads(part)), indent=1, ensure_ascii=False).replace("\n", "\n ")


def spread(value: Spread, best: bool = False) -> Cell:
    """Return a cell with mean ± standard deviation, to four digits of the mean."""
    digits = max(0, 4 - len(f"{abs(value.mean):.0f}")) if abs(value.mean) >= 1 else 4
    text = f"{value.mean:,.{digits}f}"
    if value.std is not None and not (value.std == 0 and value.mean.is_integer()):  # a count, always the same
        text += f" ± {value.std:,.{digits}f}"
    return Cell(text, finite(value.mean), best=best)


def finite(value: float) -> float | None:
    """Return the value to sort by. None, which sorts last, if the value is infinite or NaN."""
    return value if math.isfinite(value) else None
