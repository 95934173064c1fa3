"""Rivals: the runs that the cells of a column are compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

from cfsp.records.record import Record
from cfsp.tables.compare import Comparison, decimals, is_best
from cfsp.tables.frame import flat
from cfsp.tables.ranking import size_gap, why_no_best


class Rivals(NamedTuple):
    """The ids of the runs that a column is compared with; or why there are none."""

    runs: tuple[str, ...]
    why_none: str = ""


def best_runs(one: Comparison) -> dict[tuple[Any, ...], Rivals]:
    """Return for each column the runs of its best cell: the bold one, of several the one ahead unrounded."""
    bold = is_best(one, decimals(one.cells["mean"]))
    found: dict[tuple[Any, ...], Rivals] = {}
    for values, column in one.cells.groupby(one.columns, sort=False):
        ahead = column[bold[column.index]].sort_values("mean", ascending=one.better == "lower", kind="stable")
        if ahead.empty:
            why = why_no_best([*column["mean"]], [*column["removed"]], [*column.get("active", ())])
            found[values] = Rivals((), f"their column has no best: {why}")
        else:
            cell = ahead.iloc[0]
            found[values] = Rivals(one.runs[tuple(cell[name] for name in (*one.rows, *one.columns))])
    return found


def same_seeds(one: Record, other: Record) -> bool:
    """Return whether two runs have equal seeds, as far as both have them."""
    first, second = (
        {name: seed for name, seed in flat(record.config).items() if name.split(".")[-1] == "seed"}
        for record in (one, other)
    )
    return all(first[name] == second[name] for name in first.keys() & second.keys())


def same_size(one: Record, other: Record) -> bool:
    """Return whether two models removed, and use, shares that differ by a point at most."""
    removed = [one.sparsity["model"], other.sparsity["model"]]
    return not size_gap(removed, [one.active, other.active])
