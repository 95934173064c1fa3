"""Formats: tables as Markdown, LaTeX, HTML, and CSV for machines."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable

import pandas as pd

from cfsp.records.escapes import csv_text, latex_text, markdown_text
from cfsp.tables.compare import Comparison, wide


def render(tables: Iterable[Comparison], form: str) -> str:
    """Return the tables, one after the other; `form` is a key of `FORMS`."""
    return FORMS[form]([*tables])


def markdown(tables: list[Comparison]) -> str:
    def text(one: Comparison) -> str:
        cells = labelled(one, bold=lambda cell: f"**{cell}**", escape=markdown_text)
        body = cells.to_markdown(index=False, disable_numparse=True)
        return "\n\n".join(
            [f"**{markdown_text(one.caption)}**", body, *map(markdown_text, notes_on_cells(one))]
        )

    return "\n\n".join(map(text, tables)) + "\n"


def latex(tables: list[Comparison]) -> str:
    """Return tables that need `\\usepackage{booktabs}`."""

    def text(one: Comparison) -> str:
        cells = labelled(one, bold=lambda cell: rf"\textbf{{{cell}}}", escape=latex_text)
        column_format = "l" * len(one.rows) + "r" * (len(cells.columns) - len(one.rows))
        body = cells.to_latex(index=False, column_format=column_format)
        small = r" \\ ".join(map(latex_text, notes_on_cells(one)))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex_text(one.caption)}}}",
                body.rstrip(),
                rf"\par\footnotesize {small}",
                r"\end{table}",
            ]
        )

    return "\n\n".join(map(text, tables)) + "\n"


def html_page(tables: list[Comparison]) -> str:
    def text(one: Comparison) -> str:
        cells = labelled(one, bold=lambda cell: f"<strong>{cell}</strong>", escape=html.escape)
        body = cells.to_html(index=False, escape=False, border=0)
        small = "".join(f"<p><small>{html.escape(note)}</small></p>\n" for note in notes_on_cells(one))
        caption = f"<figcaption>{html.escape(one.caption)}</figcaption>"
        return f"<figure>\n{caption}\n{body}\n{small}</figure>"

    return "\n".join(map(text, tables)) + "\n"


def csv(tables: list[Comparison]) -> str:
    """Return a row per cell, sorted by the columns before `mean`; numbers in full, the protocol as JSON."""
    frames = [
        one.cells.assign(
            metric=one.metric,
            model=one.model,
            dense=one.dense,
            better=one.better,
            n=one.cells["n"].astype("Int64"),  # absent in figures of papers
            protocol=json.dumps(one.protocol, sort_keys=True),
        )
        for one in tables
    ]
    first = ["metric", "model", "dense", "better"]
    whole = pd.concat(frames)
    order = [*first, *(name for name in whole.columns if name not in (*first, "protocol")), "protocol"]
    names = order[: order.index("mean")]
    cells = whole[order].sort_values(names, key=lambda column: column.map(str))
    return cells.map(csv_cell).rename(columns=csv_text).to_csv(index=False)


def csv_cell(value: object) -> object:
    """Escape text; return numbers as they are."""
    return csv_text(value) if isinstance(value, str) else value


FORMS: dict[str, Callable[[list[Comparison]], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": csv,
    "html": html_page,
}


def labelled(one: Comparison, bold: Callable[[str], str], escape: Callable[[str], str]) -> pd.DataFrame:
    """Return `wide` with the labels of its rows as columns."""
    cells = wide(one, bold, escape)
    if "density" in one.cells:
        left = wide(one, escape=escape, density=True)
        pairs = [(f"{name}", f"density, {name}") for name in cells.columns]
        both = pd.concat([cells, left.set_axis([name for _, name in pairs], axis=1)], axis=1)
        cells = both[[name for pair in pairs for name in pair]]
    names = [escape(name) for name in one.rows]
    labels = cells.index.to_frame(index=False)
    labels.columns = names
    return pd.concat([labels, cells.reset_index(drop=True)], axis=1)


def notes_on_cells(one: Comparison) -> list[str]:
    """Return the notes below a table: what its cells show, of how many runs, under which protocol."""
    ours = one.cells[one.cells["source"] == ""]["n"]
    counts = sorted(map(int, ours.unique()))
    if counts[-1] == 1:
        parts = ["one run each"]
    else:
        usual = f"{ours.mode().max():.0f} runs" + (" if not said" if len(counts) > 1 else "")
        lone = ", one where there is no ±" if counts[0] == 1 else ""
        parts = [f"mean ± standard deviation of {usual}{lone}"]
    if one.cells["paper"].notna().any():
        parts.insert(0, "paper / ours / difference")
    parts.append("in brackets the measured share of all parameters that is gone")
    if "active" in one.cells:
        parts[-1] += ", or the share of a routed model's units that tokens use (active)"
    if "density" in one.cells:
        parts.append("density: the fraction of the blocks' weights that are not zero")
    if one.cells["mean"].count() > 1:
        parts.append(
            f"bold: best of its column ({one.better} is better), where shares differ by a point at most"
        )
    protocol = ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in one.protocol.items()
        if key != "measure" and not key.endswith("sha256")
    )
    return [f"Cells: {'; '.join(parts)}.", f"Protocol: {protocol}.", *one.notes]
