"""Terminal: print the sections of a report page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from cfsp.cli.fold_text import column_widths, fold_text
from cfsp.report.base import Section, Table

BORDERED: dict[str, Any] = {"box": HEAVY_HEAD}
BARE: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": 0}
"""How a table is drawn: with lines between columns, which take three characters a column, or with spaces."""


def show_sections(sections: Sequence[Section]) -> None:
    """Print sections to stdout without their figures, as wide as the terminal."""
    console = Console(highlight=False)
    for section in sections:
        console.print(section_text(section, console.width))


def section_text(section: Section, width: int) -> Group:
    """Return a section with the captions of its tables, and below each what its columns mean."""
    lines: list[RenderableType] = [Text(section.title, style="bold"), Text(section.intro)]
    lines += [Text(f"careful: {note}", style="bold") for note in section.notes]
    for table in section.tables:
        meanings = [Text(f"{heading}: {meaning}") for heading, meaning in table.columns.items() if meaning]
        lines += [Text(table.caption), text_grid(table, width), *meanings]
    return Group(*lines, Text())


def text_grid(table: Table, width: int) -> Grid:
    """Return a table for a terminal; columns of numbers are flush right.

    Where it is too wide, cells are folded, and if that does not do, the lines between columns left out.
    """
    columns = [
        [heading, *(row[place].text for row in table.rows)] for place, heading in enumerate(table.columns)
    ]
    count = len(columns)
    widths, look = column_widths(columns, width - 3 * count - 1), BORDERED
    if widths is None:
        widths, look = column_widths(columns, width - count - 1), BARE
    if widths is not None:
        columns = [
            [fold_text(text, size) for text in column] for column, size in zip(columns, widths, strict=True)
        ]
    rows = [*zip(*(column[1:] for column in columns), strict=True)]
    folded = sum(any("\n" in text for text in row) for row in rows)
    long = any("\n" in cell.text or len(cell.text) > 60 for row in table.rows for cell in row)
    made = Grid(show_lines=long or 2 * folded > len(rows), **look)
    for place, (heading, *_) in enumerate(columns):
        numbers = [isinstance(row[place].order, int | float) for row in table.rows if row[place].order]
        made.add_column(heading, justify="right" if numbers and all(numbers) else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made
