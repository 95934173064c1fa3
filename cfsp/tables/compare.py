"""Tables: compare records of the same metric, protocol and dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from cfsp.records.identity import part_name
from cfsp.records.protocols import counted, difference_words, differing, in_words
from cfsp.records.record import Record
from cfsp.tables.frame import (
    FULL,
    columns_of_a_run,
    dense_models,
    figures_of_cells,
    find_fields,
    frame,
    overlap_warnings,
    shared_protocol,
)
from cfsp.tables.ranking import best_of

__all__ = ["Comparison", "compare", "comparisons", "frame", "part_name", "wide"]


@dataclass(frozen=True)
class Comparison:
    """One metric of one dense model under one protocol.

    cells: a row per cell: the fields of `rows` and `columns`, then `mean`, `std`, `n`, `removed` (mean
        fraction of all parameters), `active` (if a model is routed: mean share of units that tokens use),
        `density` (if a model has zeros), `source` ("" for ours) and `paper` (a figure to compare with
        `mean`).
    differs: keys of the protocol in which the tables of one call differ.
    runs: the values of a cell's fields -> the ids of its runs.
    """

    metric: str
    model: str
    dense: float
    better: str
    protocol: Mapping[str, Any]
    rows: list[str]
    columns: list[str]
    cells: pd.DataFrame
    differs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runs: Mapping[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        apart = "".join(f", {in_words(self.protocol, key)}" for key in self.differs)
        return f"{self.metric}{apart}: {self.model}, dense {self.dense:.{decimals([self.dense])}f}"


def comparisons(
    table: pd.DataFrame,
    metric: str,
    rows: str | Iterable[str],
    columns: str | Iterable[str] = "sparsity",
    *,
    average: bool = False,
    strict: bool = False,
) -> list[Comparison]:
    """Return tables of a metric, one per protocol and dense model.

    rows, columns: fields whose values make rows and columns. average: average runs that differ in more
    than their seeds. strict: raise if there are several tables.

    Raises:
        ValueError: an unknown field, different runs in one cell, or several tables with `strict`.
    """
    rows, columns = (find_fields([*table.columns], names) for names in (rows, columns))
    if both := set(rows) & set(columns):
        raise ValueError(f"{', '.join(both)}: asked for as rows and as columns; expected one of them")
    lacking = table["id"].nunique()
    table = table[table["metric"] == metric]
    lacking -= table["id"].nunique()
    groups = [group for _, group in table.groupby(["protocol", dense_models(table)], sort=False)]
    protocols = [shared_protocol(group) for group in groups]
    differs = differing(protocols)
    if strict and len(groups) > 1:
        mixed = table["protocol"].nunique()
        raise ValueError(
            f"{metric}: the records mix {mixed} protocols: {difference_words(protocols, 'they')}"
            if mixed > 1
            else f"{metric}: the records are of {len(groups)} dense models; expected one"
        )
    made = [
        comparison(group, protocol, differs, rows, columns, average)
        for group, protocol in zip(groups, protocols, strict=True)
    ]
    note = (f"{counted(lacking, 'record has', 'records have')} no {metric}",) if lacking else ()
    return [replace(one, notes=(*one.notes, *note)) for one in made]


def comparison(
    table: pd.DataFrame,
    protocol: Mapping[str, Any],
    differs: tuple[str, ...],
    rows: list[str],
    columns: list[str],
    average: bool,
) -> Comparison:
    """Return the table of records with one metric, protocol and dense model."""
    fields = [*rows, *columns]
    known = table[fields].astype(object)
    said = known.where(known.notna(), "-")
    table = table.assign(**{field: said[field] for field in fields})
    run = columns_of_a_run(table.columns)
    seeds = [name for name in table.columns if name.split(".")[-1] == "seed"]
    repeats = table.duplicated([*run, *seeds, "value"])
    again = counted(int(repeats.sum()), "record repeats", "records repeat")
    notes = [f"{again} a run and its figure; each run counts once"] if repeats.any() else []
    table = table[~repeats]
    if mixed := unlike(table, fields, run, seeds, average):
        notes.append(f"careful: averaged over {', '.join(mixed)}, not over seeds alone")
    if (share := pd.to_numeric(table["density"])).lt(FULL).any():
        table = table.assign(density=share)
    by_cell = table.groupby(fields, sort=False)
    cells = by_cell.agg(**figures_of_cells(table))
    return Comparison(
        metric=table["metric"].iloc[0],
        model=", ".join(map(str, table["model"].unique())) if "model" in table else "-",
        dense=table["dense"].iloc[0],
        better=table["better"].iloc[0],
        protocol=protocol,
        rows=rows,
        columns=columns,
        cells=cells.reset_index().assign(source="", paper=float("nan")),
        differs=differs,
        notes=(*notes, *overlap_warnings(table, protocol)),
        runs={values: tuple(runs) for values, runs in by_cell["id"]},
    )


def unlike(
    table: pd.DataFrame, fields: list[str], run: list[str], seeds: list[str], average: bool
) -> list[str]:
    """Return the fields other than seeds in which runs of one cell differ.

    run: fields of `identity`: where and how a run was made, and what else was measured, may differ.

    Raises:
        ValueError: there are such fields and `average` is false, or one run has two figures.
    """
    found: dict[str, None] = {}
    for key, cell in table.groupby(fields, sort=False):
        differ = [name for name in run if cell[name].nunique(dropna=False) > 1]
        heads = [name for name in differ if not any(name.startswith(f"{other}.") for other in differ)]
        where = ", ".join(f"{field}={label(value)}" for field, value in zip(fields, key, strict=True))
        if heads and not average:
            raise ValueError(
                f"unlike runs share the cell {where}: they differ in {', '.join(heads)}; "
                "expected them among --rows or --columns, a filter on them, or --average"
            )
        if not heads and seeds and cell.duplicated(seeds).any():
            twice = ", ".join(cell["id"][cell.duplicated(seeds, keep=False)])
            raise ValueError(f"one run has several figures in the cell {where}: {twice}; expected one")
        found |= dict.fromkeys(heads)
    return [*found]


def wide(
    one: Comparison,
    bold: Callable[[str], str] = str,
    escape: Callable[[str], str] = str,
    density: bool = False,
) -> pd.DataFrame:
    """Return the table as text, best rows first and papers' last.

    A cell reads "mean ± standard deviation (−removed fraction of all parameters)", of a routed model
    "(active share)". The deviation is shown for several seeds, and [n=...] if their number differs from most
    cells'. "-": no such run.
    density: show instead the fraction of the blocks' weights that are not zero.
    """
    digits = decimals(one.cells["mean"])
    usual = one.cells["n"].mode().max()
    sign = 1 if one.better == "lower" else -1
    texts: dict[tuple[Any, ...], dict[tuple[Any, ...], str]] = {}
    rank: dict[tuple[Any, ...], dict[tuple[Any, ...], float]] = {}
    for cell, is_first in zip(one.cells.to_dict("records"), is_best(one, digits), strict=True):
        row = (*(cell[field] for field in one.rows), cell["source"])
        column = tuple(cell[field] for field in one.columns)
        left = "-" if pd.isna(cell.get("density")) else f"{cell['density']:.1%}"
        text = escape(left if density else cell_text(cell, digits, usual))
        texts.setdefault(row, {})[column] = bold(text) if is_first and not density else text
        rank.setdefault(row, {})[column] = sign * cell["mean"]
    heads = sorted({column for row in texts.values() for column in row}, key=sort_key)
    order = sorted(texts, key=lambda row: (row[-1] != "", rank[row].get(heads[-1], float("inf"))))
    names = [tuple(escape(label(value)) for value in row[:-1]) for row in order]
    index = pd.MultiIndex.from_tuples(names, names=one.rows) if len(one.rows) > 1 else [n[0] for n in names]
    return pd.DataFrame(
        [[texts[row].get(column, "-") for column in heads] for row in order],
        index=index,
        columns=[escape(heading(one.columns, column)) for column in heads],
    )


def is_best(one: Comparison, digits: int) -> pd.Series:
    """Return whether each of our cells is the best of its column by `best_of`, of rounded values."""
    best = pd.Series(False, one.cells.index)
    ours = one.cells[one.cells["source"] == ""]
    for _, column in ours.groupby(one.columns, sort=False):
        shown = column["mean"].round(digits)
        shares = [*column["removed"]], [*column.get("active", ())]
        best[column.index[best_of([*shown], shares[0], one.better, shares[1])]] = True
    return best


def cell_text(cell: Mapping[Any, Any], digits: int, usual: float) -> str:
    if abs(cell["mean"]) >= 1e4:
        digits = 0
    text = f"{cell['mean']:.{digits}f}"
    if cell["n"] > 1:
        text += f" ± {cell['std']:.{digits}f}"
    if pd.notna(cell["paper"]):
        difference = f"{cell['mean'] - cell['paper']:+.{digits}f}".replace("-", "−")
        text = f"{cell['paper']:.{digits}f} / {text} / {difference}"
    if cell["n"] > 1 and cell["n"] != usual:
        text += f" [n={cell['n']:.0f}]"
    if cell.get("active", 1) < 1:
        text += f" ({cell['active']:.1%} active)"
    elif pd.notna(cell["removed"]):
        text += f" ({-cell['removed']:+.1%})".replace("-", "−")
    if cell.get("mark"):
        text += f" {cell['mark']}"
    return text


def decimals(values: Iterable[float]) -> int:
    """Return digits after the point: four for fractions and bits, two for perplexities, none for counts.

    A table with one perplexity of millions keeps the digits of the others.
    """
    sizes = [abs(value) for value in values]
    return 4 if max(sizes, default=0) < 2 else 2 if min(sizes) < 1e6 else 0


def label(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def heading(fields: list[str], values: tuple[Any, ...]) -> str:
    """Return a column's heading: numbers with their field's name, a sparsity in percent."""
    names = []
    for name, value in zip(fields, values, strict=True):
        if name == "sparsity" and not isinstance(value, str):
            names.append(f"{100 * value:g}% removed")
        else:
            plain = isinstance(value, str) and "." not in name
            names.append(value if plain else f"{name.split('.')[-1]}={label(value)}")
    return ", ".join(names)


def sort_key(values: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """Return a key that sorts numbers before text."""
    return [(isinstance(value, str), value) for value in values]


def compare(
    records: Iterable[Record],
    metric: str,
    rows: Callable[[Record], str] | str,
    columns: str = "sparsity",
    *,
    average: bool = False,
) -> pd.DataFrame:
    """Return a metric of the pruned models as text: `wide` of the one table that the records make.

    rows: fields as in `comparisons`, or a function that names each record.

    Raises:
        ValueError: there are no records, one lacks the metric, protocols or dense models differ, or
            records that share a cell differ in more than their seeds and `average` is false.
    """
    records = list(records)
    if not records:
        raise ValueError("no records to compare")
    for record in records:
        if metric not in record.metrics["pruned"]:
            raise ValueError(f"record {record.id}: no {metric!r}; it has {[*record.metrics['pruned']]}")
    table = frame(records)
    if not isinstance(rows, str):
        own = table["metric"] == metric  # one row per record, in their order
        table = table[own].assign(method=[rows(record) for record in records])
    (one,) = comparisons(
        table, metric, rows if isinstance(rows, str) else "method", columns, average=average, strict=True
    )
    shown = wide(one)
    careful = any(note.startswith("careful: " + one.protocol.get("text", "\0")) for note in one.notes)
    warning = "; careful: models were made with text that this is measured on" if careful else ""
    shown.index.name = f"{metric}; dense {one.dense:.2f}{warning}"
    return shown
