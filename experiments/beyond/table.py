"""Turn the records of this study into one markdown page on stdout, and into its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from cfsp.record import Record, records
from cfsp.tables import compare, part_name

ROOT = Path(__file__).parents[2] / "results"
INTRODUCTION = """# Least squares, greedy OBS, error curves

Written by `experiments/beyond/run.sh` and `table.py`; see their README for data and reading.
Cells: perplexity, mean ± standard deviation over seeds, if there are several (share of parameters gone)."""
STEPS = {
    "reference_steps": "the embedded model, MLPs",
    "stories260k": "stories260K on TinyStories, MLPs",
    "llama_6m": "a Llama of 5.8 M parameters on WikiText-2, MLPs",
}
DEFAULTS = {"towards": "zero", "constant": False, "ridge": 0.001}
GRIDS = {"mlp": "MLPs", "mlp, attention": "MLPs and attention"}
COLORS = {"none": "#999999", "mean": "#e69f00", "least_squares": "#0072b2"}
MARKERS = {"uniform": "o", "cfsp": "s", "global_rank": "^", "error_curves": "D"}


def part(record: Record, name: str) -> str:
    """A component's name, as its group in `conf/` has it."""
    found = part_name(record.config[name]).removesuffix("_compensation")
    return "none" if found == "no" else found


def combination(record: Record) -> str:
    """Criterion / compensation / allocator."""
    return " / ".join(part(record, name) for name in ("criterion", "compensation", "allocator"))


def step(record: Record) -> str:
    """The combination, its schedule, and what is not as it comes."""
    config = record.config
    compensation, criterion = config["compensation"], config["criterion"]
    more = [part(record, "schedule")] if part(record, "schedule") != "one_shot" else []
    if compensation.get("target", "own") != "own":
        more.append(f"target {compensation['target']}")
    for name, usual in DEFAULTS.items():
        if compensation.get(name, usual) != usual:
            more.append(f"{name} {compensation[name]}".replace(" True", ""))
    if criterion.get("swaps"):
        more.append(f"swaps {criterion['swaps']}")
    return ", ".join([combination(record), *more])


def ridge(record: Record) -> str:
    return f"ridge {record.config['compensation']['ridge']}"


def sites(record: Record) -> str:
    return GRIDS[", ".join(record.config["sites"])]


def metric_of(found: Sequence[Record]) -> str:
    (name,) = {name for record in found for name in record.metrics["pruned"] if "perplexity" in name}
    return name


def read(folder: str) -> list[Record]:
    return list(records(ROOT / "beyond" / folder / "records"))


def grid() -> pd.DataFrame:
    """One row for each run of every criterion x compensation x allocator."""
    found = read("reference")
    metric = metric_of(found) if found else ""
    return pd.DataFrame(
        {
            "sites": ", ".join(record.config["sites"]),
            **{name: part(record, name) for name in ("criterion", "compensation", "allocator")},
            "asked": record.config["sparsity"],
            "perplexity": record.metrics["pruned"][metric].value,
            "gone": record.sparsity["model"],
        }
        for record in found
    )


def best(rows: pd.DataFrame) -> str:
    """Of each criterion and compensation, the allocator that served it best."""
    first = rows.loc[rows.groupby(["criterion", "compensation", "asked"])["perplexity"].idxmin()]
    cells = [
        f"{row.perplexity:.2f} (−{row.gone:.1%}, {row.allocator})" for row in first.itertuples(index=False)
    ]
    wide = first.assign(cell=cells).pivot(index=["criterion", "compensation"], columns="asked", values="cell")
    wide.columns = [f"{share:.0%}" for share in wide.columns]
    order = first.groupby(["criterion", "compensation"])["perplexity"].last().sort_values().index
    return wide.loc[order].reset_index().to_markdown(index=False)


def whole(rows: pd.DataFrame) -> str:
    """Every run, by how well it did at the highest sparsity."""
    names = ["criterion", "compensation", "allocator"]
    cells = [f"{row.perplexity:.2f} (−{row.gone:.1%})" for row in rows.itertuples(index=False)]
    wide = rows.assign(cell=cells).pivot(index=names, columns="asked", values="cell")
    wide.columns = [f"{share:.0%}" for share in wide.columns]
    last = rows[rows.asked == rows.asked.max()].set_index(names)["perplexity"].sort_values().index
    return wide.loc[last].reset_index().to_markdown(index=False)


def draw(rows: pd.DataFrame) -> Figure:
    """Perplexity of every run at the highest sparsity, by criterion; one panel for each choice of sites.

    Magnitude is left out: it would press all others into one line.
    """
    rows = rows[(rows.asked == rows.asked.max()) & (rows.criterion != "magnitude")]
    ours = [record for record in read("reference_ours") if record.config["sparsity"] == rows.asked.max()]
    kinds = [kind for kind in GRIDS if kind in {*rows.sites}]
    figure = Figure(figsize=(4.2 * len(kinds), 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        own = rows[rows.sites == kind]
        order = own.groupby("criterion")["perplexity"].min().sort_values(ascending=False).index
        shift = dict(zip(COLORS, (-0.25, 0, 0.25), strict=True))
        for row in own.itertuples():
            x = order.get_loc(row.criterion) + shift[row.compensation]
            look = {"marker": MARKERS[row.allocator], "color": COLORS[row.compensation]}
            axes.plot(x, row.perplexity, markersize=5, alpha=0.8, **look)
        values = [r.metrics["pruned"][metric_of(ours)].value for r in ours if sites(r) == GRIDS[kind]]
        if values:
            axes.axhline(sum(values) / len(values), color="#d55e00", linestyle="--")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.set_xticks(range(len(order)), order, rotation=30, ha="right")
        axes.set_title(f"{GRIDS[kind]}, {rows.asked.max():.0%} removed", fontsize=9)
        axes.set_ylabel("perplexity (lower is better)")
        axes.grid(axis="y", which="both", alpha=0.25)
    keys = [Line2D([], [], marker="s", linestyle="", color=color, label=n) for n, color in COLORS.items()]
    used = {name: mark for name, mark in MARKERS.items() if name in {*rows.allocator}}
    keys += [Line2D([], [], marker=m, linestyle="", color="black", label=n) for n, m in used.items()]
    keys += [Line2D([], [], color="#d55e00", linestyle="--", label="+experiment=obs")] if ours else []
    figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def sections() -> list[str]:
    parts = [INTRODUCTION]
    rows = grid()
    for kind, title in GRIDS.items():
        if len(rows) and len(own := rows[rows.sites == kind]):
            parts += [f"## The embedded model, {title}: each criterion's best allocator", best(own)]
    if len(rows):
        parts += ["![every combination](../figures/beyond.png)"]
    if found := read("reference_ours"):
        table = compare(found, metric_of(found), sites)
        parts += ["## The embedded model: `+experiment=obs`, three seeds", table.to_markdown()]
    for folder, title in STEPS.items():
        if found := read(folder):
            parts += [f"## Step by step: {title}", compare(found, metric_of(found), step).to_markdown()]
    if found := read("windows"):
        table = compare(found, metric_of(found), ridge, "calibration.samples")
        parts += ["## Calibration windows of 512 tokens and the ridge: OBS, least squares, uniform, 50 %"]
        parts += [table.to_markdown()]
    for kind, title in GRIDS.items():
        if len(rows) and len(own := rows[rows.sites == kind]):
            parts += [f"## All of it: {title}", whole(own)]
    return parts


if __name__ == "__main__":
    print("\n\n".join(sections()))
    if len(grid()):
        (ROOT / "figures").mkdir(exist_ok=True)
        draw(grid()).savefig(ROOT / "figures" / "beyond.png", dpi=160, metadata={"Software": None})
