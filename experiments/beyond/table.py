"""Turn the records of this study into one markdown page on stdout, a CSV of all combinations, a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from cfsp.records.record import Record, records
from cfsp.tables.compare import cell_text, compare, comparisons, part_name
from cfsp.tables.frame import frame

ROOT = Path(__file__).parents[2] / "results"
INTRODUCTION = """# Least squares, greedy OBS, error curves

Written by `experiments/beyond/run.sh` and `table.py`; see their README for data and reading.
Cells: perplexity, mean ± standard deviation over seeds, if there are several (share of parameters gone).
All combinations: `beyond.csv`."""
MODELS = {"reference": "Embedded model", "stories260k": "stories260K on TinyStories"}
STEPS = {
    "reference_steps": "embedded model, MLPs",
    "stories260k_steps": "stories260K on TinyStories, MLPs",
    "llama_6m_steps": "a Llama of 5.8 M parameters on WikiText-2, MLPs",
}
COMBINATION = ("criterion", "compensation", "allocator")
DEFAULTS = {"towards": "zero", "constant": False, "ridge": 0.001}
GRIDS = {"mlp": "MLPs", "mlp+attention": "MLPs and attention"}
COLORS = {"none": "#999999", "mean": "#e69f00", "least_squares": "#0072b2"}
OURS = "#d55e00"
MARKERS = {"uniform": "o", "cfsp": "s", "global_rank": "^", "error_curves": "D"}


def combination(record: Record) -> str:
    """Return criterion / compensation / allocator."""
    return " / ".join(part_name(record.config[name]) for name in COMBINATION)


def step(record: Record) -> str:
    """Return the combination, its schedule, and options that are not at their defaults."""
    config = record.config
    compensation, criterion = config["compensation"], config["criterion"]
    schedule = part_name(record.config["schedule"])
    more = [schedule] if schedule != "one_shot" else []
    if compensation.get("target", "own") != "own":
        more.append(f"target {compensation['target']}")
    for name, usual in DEFAULTS.items():
        if compensation.get(name, usual) != usual:
            more.append(f"{name} {compensation[name]}".replace(" True", ""))
    if criterion.get("swaps"):
        more.append(f"swaps {criterion['swaps']}")
    return ", ".join([combination(record), *more])


def ridge(record: Record) -> str:
    """Return how the consumers were fitted, if they were."""
    found = record.config["compensation"].get("ridge")
    return "none" if found is None else f"least squares, ridge {found}"


def metric_of(found: Sequence[Record]) -> str:
    (name,) = {name for record in found for name in record.metrics["pruned"] if "perplexity" in name}
    return name


def read(folder: str) -> list[Record]:
    return list(records(ROOT / "beyond" / folder / "records"))


def cells(folder: str) -> pd.DataFrame:
    """Return a row per combination, sites and sparsity, over the seeds, from `Comparison.cells`."""
    found = read(folder)
    (one,) = comparisons(frame(found), metric_of(found), [*COMBINATION, "sites"], strict=True)
    return one.cells.sort_values(["sites", *COMBINATION, "sparsity"])


def text(row: Any) -> str:
    return cell_text(row._asdict(), digits=2, usual=row.n)


def best(rows: pd.DataFrame) -> str:
    """Return the best allocator for each criterion and compensation."""
    first = rows.loc[rows.groupby(["criterion", "compensation", "sparsity"])["mean"].idxmin()]
    texts = [f"{text(row)} {row.allocator}" for row in first.itertuples(index=False)]
    wide = first.assign(text=texts).pivot(
        index=["criterion", "compensation"], columns="sparsity", values="text"
    )
    wide.columns = [f"{share:.0%}" for share in wide.columns]
    order = first[first.sparsity == first.sparsity.max()].set_index(["criterion", "compensation"])
    return wide.loc[order["mean"].sort_values().index].reset_index().to_markdown(index=False)


def verdict(rows: pd.DataFrame, ours: pd.DataFrame) -> str:
    """Return `+experiment=obs` beside the best combination of the grid."""
    table = []
    for own in ours.itertuples(index=False):
        others = rows[(rows.sites == own.sites) & (rows.sparsity == own.sparsity)].sort_values("mean")
        other = next(others.itertuples(index=False))
        name = " / ".join(getattr(other, part) for part in COMBINATION)
        table.append([GRIDS[own.sites], f"{own.sparsity:.0%}", text(own), text(other), name, len(others)])
    columns = ["sites", "asked", "`+experiment=obs`", "best of the grid", "which", "of"]
    return pd.DataFrame(table, columns=columns).to_markdown(index=False)


def draw(grids: dict[str, pd.DataFrame], ours: dict[str, pd.DataFrame]) -> Figure:
    """Draw the perplexity of every combination at the highest sparsity: models downwards, sites across.

    Magnitude is left out: its scale would hide the differences of all others.
    """
    figure = Figure(figsize=(4.2 * len(GRIDS), 3.2 * len(grids)), layout="constrained")
    panels = figure.subplots(len(grids), len(GRIDS), squeeze=False)
    for line, (folder, rows) in zip(panels, grids.items(), strict=True):
        for axes, (kind, title) in zip(line, GRIDS.items(), strict=True):
            highest = rows.sparsity.max()
            shown = (rows.sites == kind) & (rows.sparsity == highest) & (rows.criterion != "magnitude")
            panel(axes, rows[shown])
            axes.set_title(f"{MODELS[folder]}: {title}, {highest:.0%} removed", fontsize=8)
            if (own := ours.get(folder)) is not None:
                for value in own[(own.sites == kind) & (own.sparsity == highest)]["mean"]:
                    axes.axhline(value, color=OURS, linestyle="--")
    handles = [Line2D([], [], marker="s", linestyle="", color=color, label=n) for n, color in COLORS.items()]
    handles += [Line2D([], [], marker=m, linestyle="", color="black", label=n) for n, m in MARKERS.items()]
    handles += [Line2D([], [], color=OURS, linestyle="--", label="+experiment=obs")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def panel(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the criteria side by side, from the worst to the best, with each one's compensations separate."""
    order = rows.groupby("criterion")["mean"].min().sort_values(ascending=False).index
    shift = dict(zip(COLORS, (-0.25, 0, 0.25), strict=True))
    for row in rows.itertuples():
        x = order.get_loc(row.criterion) + shift[row.compensation]
        look = {"marker": MARKERS[row.allocator], "color": COLORS[row.compensation]}
        axes.plot(x, row.mean, markersize=5, alpha=0.8, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="both", labelsize=7)
    axes.set_xticks(range(len(order)), order, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("perplexity (lower is better)", fontsize=8)
    axes.grid(axis="y", which="both", alpha=0.25)


def page(grids: dict[str, pd.DataFrame], ours: dict[str, pd.DataFrame]) -> str:
    parts = [INTRODUCTION]
    for folder, own in ours.items():
        parts += [f"## {MODELS[folder]}: `+experiment=obs` against every combination"]
        parts += [verdict(grids[folder], own)]
    if grids:
        parts += ["![every combination](../figures/beyond.png)"]
    for folder, rows in grids.items():
        for kind, title in GRIDS.items():
            parts += [f"## {MODELS[folder]}, {title}: each criterion's best allocator"]
            parts += [best(rows[rows.sites == kind])]
    for folder, title in STEPS.items():
        if found := read(folder):
            parts += [f"## Step by step: {title}", compare(found, metric_of(found), step).to_markdown()]
    if found := read("windows"):
        table = compare(found, metric_of(found), ridge, "calibration.samples")
        parts += ["## Calibration windows of 512 tokens and the ridge: OBS, uniform, 50 %"]
        parts += [table.to_markdown()]
    return "\n\n".join(parts)


if __name__ == "__main__":
    grids = {folder: cells(folder) for folder in MODELS if read(folder)}
    ours = {folder: cells(f"{folder}_ours") for folder in grids if read(f"{folder}_ours")}
    if grids:
        (ROOT / "figures").mkdir(exist_ok=True)
        draw(grids, ours).savefig(ROOT / "figures" / "beyond.png", dpi=160, metadata={"Software": None})
        named = [rows.assign(model=MODELS[folder]) for folder, rows in grids.items()]
        columns = ["model", "sites", *COMBINATION, "sparsity", "mean", "std", "n", "removed"]
        pd.concat(named)[columns].round(4).to_csv(ROOT / "tables" / "beyond.csv", index=False)
    print(page(grids, ours))
