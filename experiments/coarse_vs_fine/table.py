"""Write the tables of this study: table.py [OVERRIDES], those of the runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from calibrated import calibrated
from pandas.core.groupby import DataFrameGroupBy
from released import agreement
from temperatures import METRICS, temperatures

from cfsp.records.record import Record, records

RESULTS = Path(__file__).parents[2] / "results"
METRIC = "perplexity/stdlib:test"
FINE = {
    "paper": "cfsp, paper",
    "released": "cfsp, released",
    "wanda_sp": "wanda_sp",
    "magnitude": "magnitude",
}
COARSE = ("uniform", *METRICS)


def row(record: Record) -> dict[str, object]:
    config = record.config
    allocator, criterion = config["allocator"], config["criterion"]
    name = allocator["_target_"].rsplit(".", 1)[1]
    widths = [kept / units for units, kept in record.widths.values()]
    return {
        "coarse": allocator.get("metric", "uniform"),
        "fine": FINE[criterion.get("variant", criterion["_target_"].split(".")[-2])],
        "released": name == "CFSPReleased",
        "step": allocator["round_to"],
        "temperature": allocator.get("temperature"),
        "sparsity": config["sparsity"],
        "text": config["calibration"]["text"].get("content", "documentation"),
        "samples": config["calibration"]["samples"],
        "seed": config["seed"],
        "perplexity": record.metrics["pruned"][METRIC].value,
        "dense": record.metrics["dense"][METRIC].value,
        "removed": record.sparsity["model"],
        "narrowest": min(widths),
        "widest": max(widths),
    }


def read(part: str) -> pd.DataFrame:
    return pd.DataFrame(row(record) for record in records(RESULTS / "coarse_vs_fine" / part / "records"))


def factorial(table: pd.DataFrame, sparsity: float, step: int) -> str:
    """Return the table of coarse metrics by fine scores."""
    part = table[(table.sparsity == sparsity) & (table.step == step)]
    wide = part.pivot(index="coarse", columns="fine", values="perplexity")
    return wide.loc[[*COARSE], [*FINE.values()]].to_markdown(floatfmt=".2f")


def adjustment(table: pd.DataFrame) -> str:
    """Return the table of the widths' steps, under uniform and angular widths."""
    part = table[(table.fine == FINE["paper"]) & table.coarse.isin(["uniform", "angular"])]
    wide = part.pivot(index=["coarse", "sparsity"], columns="step", values="perplexity").reset_index()
    return wide.sort_values(["sparsity", "coarse"], ascending=[True, False]).to_markdown(
        index=False, floatfmt=("", "", ".2f", ".2f", ".2f", ".2f")
    )


def steepness(table: pd.DataFrame) -> str:
    """Return the table of the temperatures of angular distances."""
    cells = spread(table.groupby(["sparsity", "temperature"]))
    return cells.unstack("sparsity").reset_index().to_markdown(index=False)


def calibration(table: pd.DataFrame) -> str:
    """Return the table of calibration texts and sample counts."""
    method = table.coarse.where(~table.released, "as released") + " / " + table.fine
    cells = spread(table.assign(method=method).groupby(["method", "text", "samples"]))
    return cells.unstack("samples").reset_index().to_markdown(index=False)


def spread(groups: DataFrameGroupBy) -> pd.Series:
    """Return mean and standard deviation over seeds, and the range of widths."""
    found = groups.agg(
        mean=("perplexity", "mean"),
        std=("perplexity", "std"),
        low=("narrowest", "mean"),
        high=("widest", "mean"),
    )
    return found.apply(
        lambda cell: f"{cell['mean']:.2f} ± {cell['std']:.2f} ({cell.low:.0%} to {cell.high:.0%})", axis=1
    )


def blocks(overrides: list[str]) -> str:
    """Return the coarse metrics per block, and the temperatures that make them equally steep."""
    _, sites, stats = calibrated(overrides, {f"block_{metric}" for metric in METRICS})
    distance = {metric: [float(stats[site.name][f"block_{metric}"]) for site in sites] for metric in METRICS}
    found = temperatures(distance)
    columns = {f"block {site.block}": [distance[m][i] for m in METRICS] for i, site in enumerate(sites)}
    table = pd.DataFrame({"metric": METRICS, **columns, "temperature": [found[m] for m in METRICS]})
    return table.to_markdown(index=False, floatfmt=".4g")


def main() -> None:
    overrides = sys.argv[1:]
    ablation = read("ablation")
    sections = [
        "# Coarse against fine\n\nWritten by `experiments/coarse_vs_fine/run.sh`; see its README for the "
        f"reading. Perplexity; dense {ablation.dense.iloc[0]:.2f}.",
        "## Distances per block, and temperatures of equal steepness\n\n" + blocks(overrides),
    ]
    for sparsity in (0.2, 0.5):
        for step, name in ((1, "without dimension adjustment"), (128, "widths in steps of 128")):
            sections.append(
                f"## {sparsity:.0%} of the MLPs, {name}\n\n" + factorial(ablation, sparsity, step)
            )
    sections += [
        "## Dimension adjustment, criterion cfsp\n\nColumns: the step of the 512 neurons.\n\n"
        + adjustment(ablation),
        "## Steepness: the temperature of angular distances\n\nMean ± standard deviation over three seeds "
        "(narrowest to widest MLP); 0 is uniform.\n\n" + steepness(read("steepness")),
        "## Calibration text and samples of 512 tokens, 50 %\n\nMean ± standard deviation over three seeds "
        "(narrowest to widest MLP).\n\n" + calibration(read("calibration")),
        "## The release's fine scores\n\nShare of the kept neurons that activation alone keeps, the least "
        "of five blocks.\n\n" + agreement(overrides).to_markdown(floatfmt=".3f"),
    ]
    tables = RESULTS / "tables"
    (tables / "coarse_vs_fine.md").write_text("\n\n".join(sections) + "\n")
    columns = ["coarse", "fine", "step", "sparsity", "perplexity", "dense", "removed"]
    ablation[columns].sort_values(columns[:4]).to_csv(tables / "coarse_vs_fine.csv", index=False)


if __name__ == "__main__":
    main()
