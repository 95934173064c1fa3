"""What a page is made of: sections of figures and tables whose cells know how to be sorted."""

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
from cfsp.records.record import Record
from cfsp.report.groups import Spread
from cfsp.report.paths import hide_paths, without_paths


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number or word to sort by; nothing to sort by comes last.

    order: "" of a word, which is sorted by as it stands. details: a long text that opens on demand. best:
    whether it stands out.
    """

    text: str
    order: float | str | None = None
    details: str | None = None
    best: bool = False

    @property
    def attributes(self) -> str:
        """What its HTML says besides the text: as little as can be, because pages have many."""
        look = " ".join(["best"] * self.best + ["long"] * (len(self.text) > 44))
        order = f"{self.order:.9g}" if isinstance(self.order, int | float) else '""'
        return (f' class="{look}"' if look else "") + ("" if self.order == "" else f" data-order={order}")


@dataclass(frozen=True)
class Table:
    """A sortable table. columns: heading -> what it means, shown where the pointer rests."""

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Cell]]

    @property
    def headings(self) -> list[tuple[str, str, bool]]:
        """Of each column its name, what it means and whether it is of numbers, which stand on the right."""
        first = self.rows[0] if self.rows else [MISSING] * len(self.columns)
        return [
            (name, meaning, cell.order != "")
            for (name, meaning), cell in zip(self.columns.items(), first, strict=True)
        ]

    @property
    def details(self) -> dict[str, list[Any]]:
        """The details of all cells, in their order."""
        return pack_texts([cell.details for row in self.rows for cell in row if cell.details is not None])


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
    return Cell(hide_paths(text), "")


def measured(title: str) -> str:
    """What is measured, in words: `perplexity/files:a.txt` is the perplexity on a.txt."""
    return title.replace("perplexity/", "perplexity on ", 1).replace(" files:", " ", 1)


def protocol_text(key: str, value: Any) -> str:
    """A value of a protocol; of a hash as much as tells two apart."""
    return hide_paths(str(value).removeprefix("files:")[: 8 if key.endswith("_sha256") else None])


def pack_texts(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Texts that are much alike, each word once.

    words: all words, with the space behind them. texts: of each text the runs of words that it consists
        of, by first word and length: [0, 5, 9, 1] is words 0 to 4, then word 9.
    """
    places: dict[tuple[str, int], int] = {}
    runs: list[list[int]] = []
    for text in texts:
        run: list[int] = []
        counts: Counter[str] = Counter()
        for one in re.findall(r"\s*\S+\s*", text):
            # Each time that a word comes again in a text it has a place of its own, so that runs are long.
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


def asked(value: float) -> Cell:
    """A share that somebody chose: as few digits as it has."""
    return Cell(f"{100 * value:.4g}%", value)


def details(one: Record | Failure) -> str:
    """What was asked for: the command, if there was one, and the config; paths of the disk are cut."""
    parts = [f"{json.dumps(key)}: {indented(json.dumps(value))}" for key, value in one.config.items()]
    config = ",\n ".join(parts)
    return f"{hide_paths(one.command or '')}\n\n{{\n {config}\n}}".lstrip()


@lru_cache(maxsize=4096)
def indented(part: str) -> str:
    """A part of a config as people read it. Runs share most of theirs, and indenting is slow."""
    return json.dumps(without_paths(json.loads(part)), indent=1, ensure_ascii=False).replace("\n", "\n ")


def spread(value: Spread, best: bool = False) -> Cell:
    """Mean ± standard deviation, to four digits of the mean."""
    digits = max(0, 4 - len(f"{abs(value.mean):.0f}")) if abs(value.mean) >= 1 else 4
    text = f"{value.mean:,.{digits}f}"
    if value.std is not None and not (value.std == 0 and value.mean.is_integer()):  # a count, always the same
        text += f" ± {value.std:,.{digits}f}"
    return Cell(text, finite(value.mean), best=best)


def finite(value: float) -> float | None:
    """What to sort by: infinity and NaN come last, as what is missing does."""
    return value if math.isfinite(value) else None
