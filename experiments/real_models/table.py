"""Write the table and the figure of the runs in results/real_models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib import rc_context

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.report.groups import perplexities
from cfsp.report.plots.base import STYLE, looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.storage.atomic import replacing
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# SmolLM2-135M-Instruct, pruned five ways

Written by `experiments/real_models/run.sh`; its
[README](../../experiments/real_models/README.md) names the data. MLP neurons go, nothing is trained.
`cfsp / cfsp` has widths in multiples of 128 and so misses the asked share: compare it by the share in
brackets.

"""


WORST = 10
"""The figure leaves out runs whose perplexity is more than this many times that of the dense model."""


def method(record: Record) -> str:
    """Return the criterion, and what it is combined with if that is not the default."""
    names = [part_name(record.config[part]) for part in ("criterion", "compensation", "allocator")]
    return " / ".join(name for name in names if name not in ("none", "uniform"))


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
        "tables/real_models.md": INTRODUCTION + render([one], "markdown"),
        "tables/real_models.csv": render([one], "csv"),
    }
    with rc_context(STYLE), replacing(RESULTS / "figures" / "real_models.png") as part:
        figure.savefig(part, format="png", dpi=160, metadata={"Software": None})
    for name, text in written.items():
        with replacing(RESULTS / name) as part:
            part.write_text(text)


if __name__ == "__main__":
    main()
