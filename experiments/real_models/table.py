"""Write the table and the figure of the runs in results/real_models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.report.groups import Measure, perplexities
from cfsp.report.plots.base import STYLE, looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.storage.atomic import replacing
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# SmolLM2-135M-Instruct, pruned without training

Written by `experiments/real_models/run.sh`; its
[README](../../experiments/real_models/README.md) names the data. MLP neurons go, nothing is trained.

"""
RATIOS = """
## Increase over the dense model, as a part of released CFSP's

(perplexity - dense) / (perplexity of CFSP as released - dense), where both have lost the same share of
parameters.

"""
REFERENCE = "cfsp / cfsp_released"
SAME_SIZE = 0.002
"""Two models are of one size if the removed shares of all parameters differ by no more than this."""


WORST = 10
"""The figure leaves out runs whose perplexity is more than this many times that of the dense model."""


def method(record: Record) -> str:
    """Return the criterion, and what it is combined with if that is not the default."""
    names = [part_name(record.config[part]) for part in ("criterion", "compensation", "allocator")]
    return " / ".join(name for name in names if name not in ("none", "uniform"))


def ratios(found: Sequence[Record], names: Mapping[str, str], measure: Measure) -> str:
    """Return the table of `RATIOS`. A cell is empty where no run of the reference has the same size."""
    rows: dict[str, dict[str, str]] = {}
    references = [record for record in found if names[record.id] == REFERENCE]
    for record in found:
        for other in references:
            if abs(record.sparsity["model"] - other.sparsity["model"]) < SAME_SIZE:
                part = (measure.read(record) - measure.dense) / (measure.read(other) - measure.dense)
                asked = f"{record.config['sparsity']:.0%} of the MLPs removed"
                rows.setdefault(names[record.id], {})[asked] = f"{part:.2f}"
    table = pd.DataFrame.from_dict(rows, orient="index").sort_index(axis=1).fillna("")
    table = table.sort_values([*table], key=lambda column: column.astype(float, errors="ignore"))
    return RATIOS + table.rename_axis("method").to_markdown(disable_numparse=True) + "\n"


def main() -> None:
    """Write results/tables/real_models.md and .csv, and results/figures/real_models.png."""
    found = [*records(RESULTS / "real_models" / "records")]
    names = {record.id: method(record) for record in found}
    (measure,) = perplexities(found)
    good = [record for record in found if measure.read(record) < WORST * measure.dense]
    figure = quality_by_size(replace(measure, records=good), names, looks(names.values()))
    table = frame(found)
    (one,) = comparisons(table.assign(method=table["id"].map(names)), measure.names[0], "method")
    written = {
        "tables/real_models.md": INTRODUCTION + render([one], "markdown") + ratios(found, names, measure),
        "tables/real_models.csv": render([one], "csv"),
    }
    with rc_context(STYLE), replacing(RESULTS / "figures" / "real_models.png") as part:
        figure.savefig(part, format="png", dpi=160, metadata={"Software": None})
    for name, text in written.items():
        with replacing(RESULTS / name) as part:
            part.write_text(text)


if __name__ == "__main__":
    main()
