"""Write the tables and the figures of the runs in results/real_models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.report.groups import perplexities, ranked
from cfsp.report.plots.base import STYLE, looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.storage.atomic import replacing
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# {model}, pruned

Written by `MODEL={model} experiments/real_models/run.sh`; its
[README](../../experiments/real_models/README.md) names the data. MLP neurons go, nothing is trained.

"""
IN_DOMAIN = """
## Calibrated on {windows} windows of the kind of text that is tested

Written by `MODEL={model} experiments/real_models/run.sh {part}`: {windows} windows of WikiText-2's validation
split instead of 32 of C4, and refits with a ridge of 1 where they had `auto`; all else is the same.

"""
WITH_ATTENTION = """
## MLPs and attention, and whole blocks

Written by `MODEL={model} experiments/real_models/run.sh with_attention`: 20, 30 and 50 % of the weights
of both go; a whole block is both. Calibrated on C4 as above.

"""
RATIOS = """
**Increase of the perplexity, divided by that of CFSP's released code at the same size**; then the mean
minutes of the plan and the most memory of a run. In brackets: runs of another size than the released code's.

"""
REFERENCE = "cfsp / cfsp_released"
SAME = 5e-4
"""Sizes that differ by more of the dense parameters are not compared without a word."""

DRAWN = (
    "cfsp / least_squares (auto) / cfsp",
    "cfsp / least_squares (relative) / cfsp",
    "obs (fisher) / least_squares (auto) / cfsp",
    "wanda_sp / least_squares",
    "taylor / least_squares",
    "flap / least_squares / global_rank",
    REFERENCE,
    "wanda_sp",
    "taylor",
)
"""The methods of the figure: the best of ours, the usual ones with least squares, and three without."""


def method(record: Record) -> str:
    """Return the criterion, and what it is combined with if that is not the default."""
    names = [part_name(record.config[part]) for part in ("criterion", "compensation", "allocator")]
    if record.config["criterion"].get("metric") == "fisher":
        names[0] += " (fisher)"
    if record.config["compensation"].get("ridge") == "auto":
        names[1] += " (auto)"
    if record.config["compensation"].get("towards") == "zero":
        names[1] += " (plain ridge)"
    if record.config["compensation"].get("tokens") == "relative":
        names[1] += " (relative)"
    if record.config["allocator"].get("drop_blocks"):
        names[2] += " with blocks"
    if rounds := record.config["allocator"].get("rounds"):
        names[2] += f" (joint, {rounds})"
    return " / ".join(name for name in names if name not in ("none", "uniform"))


def ratios(found: Sequence[Record]) -> pd.DataFrame:
    """Return what every method adds to the perplexity as a share of what the released CFSP adds, by sparsity.

    Raises:
        ValueError: a sparsity without a run of the released CFSP.
    """
    (measure,) = perplexities([*found])
    added = {(method(one), one.config["sparsity"]): measure.read(one) - measure.dense for one in found}
    gone = {(method(one), one.config["sparsity"]): one.sparsity["model"] for one in found}
    rows: dict[str, dict[str, str]] = {}
    for (name, sparsity), increase in sorted(added.items(), key=lambda item: (item[0][1], item[1])):
        if (REFERENCE, sparsity) not in added:
            raise ValueError(f"no run of {REFERENCE} without {sparsity:.0%}; expected one to divide by")
        text = f"{increase / added[REFERENCE, sparsity]:.2f}"
        alike = abs(gone[name, sparsity] - gone[REFERENCE, sparsity]) <= SAME
        rows.setdefault(name, {})[f"{sparsity:.0%}"] = text if alike else f"({text})"
    table = pd.DataFrame.from_dict(rows, orient="index")
    for name in table.index:
        own = [one for one in found if method(one) == name]
        table.loc[name, "plan, minutes"] = f"{sum(one.seconds['plan'] for one in own) / len(own) / 60:.1f}"
        table.loc[name, "memory, GB"] = f"{max(max(one.peak_bytes.values()) for one in own) / 1e9:.1f}"
    return table.fillna("-").rename_axis("method").reset_index()


def tables(found: Sequence[Record]) -> str:
    """Return the perplexities and the ratios of the runs of one protocol."""
    return (
        compared(found, "markdown") + RATIOS + ratios(found).to_markdown(index=False, disable_numparse=True)
    )


def compared(found: Sequence[Record], form: str) -> str:
    """Return the perplexities as a table."""
    names = {record.id: method(record) for record in found}
    table = frame([*found])
    (measure,) = perplexities([*found])
    (one,) = comparisons(table.assign(method=table["id"].map(names)), measure.names[0], "method")
    return render([one], form)


def write(model: str, found: Sequence[Record]) -> None:
    """Write the tables and the figure of one model."""
    names = {record.id: method(record) for record in found}
    (measure,) = perplexities([*found])
    shown = replace(measure, records=[record for record in found if names[record.id] in DRAWN])
    figure = quality_by_size(shown, ranked(names, [shown]), looks(names.values()))
    text = INTRODUCTION.format(model=model) + tables(found) + "\n"
    for part, windows in {"in_domain": 64, "in_domain_256": 256}.items():
        if in_domain := further(part, model):
            text += IN_DOMAIN.format(model=model, part=part, windows=windows) + tables(in_domain) + "\n"
    if with_attention := further("with_attention", model):
        text += WITH_ATTENTION.format(model=model) + compared(with_attention, "markdown") + "\n"
    name = "real_models" if model.startswith("SmolLM2") else f"real_models_{model}"
    with rc_context(STYLE), replacing(RESULTS / "figures" / f"{name}.png") as part:
        figure.savefig(part, format="png", dpi=160, metadata={"Software": None})
    for end, content in ((".md", text), (".csv", compared(found, "csv"))):
        with replacing(RESULTS / "tables" / f"{name}{end}") as part:
            part.write_text(content)


def further(part: str, model: str) -> list[Record]:
    """Return the runs of another part of the study; maybe none."""
    return [*records(RESULTS / f"real_models_{part}" / model / "records")]


def main() -> None:
    """Write results/tables/real_models*.md and .csv, and results/figures/real_models*.png."""
    for folder in sorted((RESULTS / "real_models").glob("*/records")):
        write(folder.parent.name, [*records(folder)])


if __name__ == "__main__":
    main()
