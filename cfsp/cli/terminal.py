"""Terminal: print the sections of a report page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from cfsp.report.base import Section, Table


def show_sections(sections: Sequence[Section]) -> None:
    """Print sections to stdout without their figures, as wide as the terminal."""
    console = Console(highlight=False)
    for section in sections:
        console.print(section_text(section))


def section_text(section: Section) -> Group:
    """Return a section with the captions of its tables, and below each what its columns mean."""
    lines: list[RenderableType] = [Text(section.title, style="bold"), Text(section.intro)]
    lines += [Text(f"careful: {note}", style="bold") for note in section.notes]
    for table in section.tables:
        meanings = [Text(f"{heading}: {meaning}") for heading, meaning in table.columns.items() if meaning]
        lines += [Text(table.caption), text_grid(table), *meanings]
    return Group(*lines, Text())


def text_grid(table: Table) -> Grid:
    """Return a table for the terminal; columns of numbers are flush right."""
    made = Grid(
        show_lines=any("\n" in cell.text or len(cell.text) > 60 for row in table.rows for cell in row)
    )
    for place, heading in enumerate(table.columns):
        numbers = [isinstance(row[place].order, int | float) for row in table.rows if row[place].order]
        made.add_column(heading, justify="right" if numbers and all(numbers) else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(cell.text) for cell in row))
    return made
