"""Published figures as data, shown below our own or compared with them.

Every figure has a source and says who measured it; one without a source or a window is not included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cfsp.tables.compare import Comparison

COLUMNS = (
    "method",
    "model",
    "sparsity",  # a fraction
    "sparsity_means",  # a fraction of what, in the source's words
    "metric",
    "window",  # tokens; empty where there is none
    "value",
    "source",
    "trust",
    "note",
)
KINDS = {"window": "Int64"}  # may be absent
TRUST = ("authors", "third party")
"""Who measured: the authors of the method, or others."""


def find_folder(given: str | None, places: Iterable[str]) -> Path:
    """Return the given folder, else the nearest `papers/` beside or above the records.

    Raises:
        ValueError: there is none.
    """
    if given:
        folders = [Path(given)]
    else:
        folders = [parent / "papers" for place in places for parent in Path(place).absolute().parents]
    for folder in folders:
        if any(folder.glob("*.csv")):
            return folder
    where = repr(given) if given else "no folder papers/ with .csv files beside or above the records"
    raise ValueError(f"papers: {where}; expected --papers=FOLDER, such as a checkout's results/papers")


def load_papers(folder: Path) -> pd.DataFrame:
    """Return all figures in a folder's .csv files. Raises ValueError for a file with other columns."""
    frames = []
    for path in sorted(folder.glob("*.csv")):
        figures = pd.read_csv(
            path, dtype={"window": "Int64"}, keep_default_na=False, na_values={"window": ""}
        )
        if tuple(figures.columns) != COLUMNS:
            raise ValueError(f"{path}: columns {', '.join(figures.columns)}; expected {', '.join(COLUMNS)}")
        frames.append(figures)
    return pd.concat(frames, ignore_index=True)


def with_papers(one: Comparison, papers: pd.DataFrame, model: str | None) -> Comparison:
    """Return the table with a row added per method and source that has figures for its model and metric.

    Raises:
        ValueError: its columns are not sparsities alone.
    """
    if one.columns != ["sparsity"]:
        raise ValueError(f"papers: columns {', '.join(one.columns)}; expected sparsity alone")
    found = matching_figures(one, papers, model)
    shown = found[found["sparsity"].isin(one.cells["sparsity"])]
    if shown.empty:
        nothing = f"papers: nothing for {wanted(one, model)} at these sparsities"
        return replace(one, notes=(*one.notes, nothing))
    sources = {source: f"[{number}]" for number, source in enumerate(shown["source"].unique(), start=1)}
    rows = []
    for figure in shown.to_dict("records"):
        others = ", by others" if figure["trust"] == "third party" else ""
        name = f"{figure['method']}{others} {sources[figure['source']]}, of {figure['sparsity_means']}"
        row = {one.rows[0]: name, **dict.fromkeys(one.rows[1:], "")}
        rows.append(
            {**row, "sparsity": figure["sparsity"], "mean": figure["value"], "source": figure["source"]}
        )
    dense = found[found["method"] == "dense"].set_index("source")["value"]
    cited = (
        f"{number} {source}" + (f"; dense {dense[source]:g} there" if source in dense else "")
        for source, number in sources.items()
    )
    cells = pd.concat([one.cells, pd.DataFrame(rows)], ignore_index=True)
    return replace(one, cells=cells, notes=(*one.notes, *cited))


def against(one: Comparison, papers: pd.DataFrame, model: str | None, pairs: str) -> Comparison:
    """Return the table with a paper's figure beside each cell that has a counterpart.

    pairs: comma-separated `row=method`, where `row` is any value of the row; other rows are compared
        with the method that their first field names, if any.

    Raises:
        ValueError: neither rows nor columns are sparsities, a method that no paper has, several rows
            for one method, or several methods or figures for one cell.
    """
    if "sparsity" not in (*one.rows, *one.columns):
        raise ValueError("--against: expected sparsity among rows or columns")
    found = matching_figures(one, papers, model)
    methods = named_methods(pairs, papers)
    fields = [field for field in one.rows if field != "sparsity"]
    figures, meant = [], []
    held: dict[str, tuple[str, ...]] = {}  # method -> its row
    for cell in one.cells.to_dict("records"):
        row = tuple(str(cell[field]) for field in fields)
        method = method_of(row, methods)
        alike = found["method"].map(plain_method) == plain_method(method)
        same = found[alike & (found["sparsity"] == cell["sparsity"])]
        if "authors" in set(same["trust"]):
            same = same[same["trust"] == "authors"]
        if len(same) > 1:
            raise ValueError(f"--against {method}: several figures, of {'; '.join(same['source'])}")
        if len(same) and held.setdefault(plain_method(method), row) != row:
            rows = " and ".join("/".join(values) for values in (held[plain_method(method)], row))
            raise ValueError(f"--against {method}: rows {rows}; expected a pair or a filter for one of them")
        figures.append(same["value"].iloc[0] if len(same) else math.nan)
        meant += [meaning_of(figure) for figure in same.to_dict("records")]
    if not meant:
        meant = [f"papers: no counterpart of a row for {wanted(one, model)} at these sparsities"]
    cells = one.cells.assign(paper=figures)
    return replace(one, cells=cells, notes=(*one.notes, *dict.fromkeys(meant)))


def meaning_of(figure: Mapping[Any, Any]) -> str:
    """Return what a published figure's sparsity means, and where the figure stands."""
    other = ", which is not by its authors" if figure["trust"] == "third party" else ""
    return f"{figure['method']}: sparsity of {figure['sparsity_means']}; {figure['source']}{other}"


def method_of(row: tuple[str, ...], methods: Mapping[str, str]) -> str:
    """Return the method that a pair assigns to a value of the row, else the row's first value, or "".

    Raises:
        ValueError: pairs assign several methods.
    """
    named = dict.fromkeys(methods[value] for value in row if value in methods)
    if len(named) > 1:
        raise ValueError(f"--against {', '.join(named)}: all of row {'/'.join(row)}; expected one of them")
    return next(iter([*named, *row]), "")


def named_methods(pairs: str, papers: pd.DataFrame) -> dict[str, str]:
    """Return row -> method of a paper. Raises ValueError for a malformed pair or an unknown method."""
    methods = {}
    for pair in filter(None, pairs.split(",")):
        row, sign, method = pair.partition("=")
        if not sign or plain_method(method) not in set(papers["method"].map(plain_method)):
            known = ", ".join(sorted(papers["method"].unique()))
            raise ValueError(f"--against {pair!r}: expected ROW=METHOD with a method of {known}")
        methods[row] = method
    return methods


def matching_figures(one: Comparison, papers: pd.DataFrame, model: str | None) -> pd.DataFrame:
    """Return figures of the same model and metric, measured with the same window without overlap."""
    same = papers[papers["model"].map(model_name) == model_name(model or one.model)]
    same = same[same["metric"] == one.metric.split("@")[0]]
    if "window" not in one.protocol:
        return same[same["window"].isna()]
    window, stride = one.protocol["window"], one.protocol.get("stride", one.protocol["window"])
    apart = stride >= window - bool(one.protocol.get("bos"))
    return same[(same["window"] == window).fillna(False)] if apart else same.iloc[:0]


def wanted(one: Comparison, model: str | None) -> str:
    window = f", window {one.protocol['window']}" if "window" in one.protocol else ""
    return f"{model or one.model}, {one.metric.split('@')[0]}{window}"


def plain_method(name: str) -> str:
    """Return a method's name without differences of spelling."""
    return re.sub(r"[-_ ]+", " ", name).casefold()


def model_name(name: str) -> str:
    """Return a model's name in the form common to hub and papers: without meta-, -hf and case."""
    return plain_method(name).removeprefix("meta ").removesuffix(" hf")
