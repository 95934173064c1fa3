"""Write the tables and the figures of the runs in results/real_models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from full import Found, tasks, texts
from matplotlib import rc_context
from matplotlib.figure import Figure
from summary import PAGES, SUMMARISED, put, summary

from cfsp.records.identity import part_name
from cfsp.records.outcome_file import read_outcomes
from cfsp.records.record import Record
from cfsp.report.groups import Measure, perplexities, ranked
from cfsp.report.plots.base import STYLE, looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.storage.atomic import replacing
from cfsp.tables.against_run import marked_tables
from cfsp.tables.formats import render
from cfsp.tables.paired import in_order

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# {model}, pruned

Written by `MODEL={model} experiments/real_models/run.sh`; its
[README](../../experiments/real_models/README.md) names the data. MLP neurons go and nothing
is trained, unless a section says more.
A row is a preset (`+experiment=NAME`), or criterion, compensation and allocator without defaults. In brackets
are options that differ from the preset's.

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
**Increase of the perplexity, divided by that of CFSP's released code at the same size**, with its 95 %
interval over windows (paired bootstrap). In brackets: runs of another size than the released code's.{cost}

"""
COST = """ Minutes and memory are of
one plan, 30 % removed, on one of two busy cores, in a process of its own and with nothing in the cache
(`run.sh cost`; -: not measured)."""
REFERENCE = "cfsp_released"
SAME = 5e-4
"""Sizes that differ by more of the dense parameters are not compared without a word."""

PRESETS = {
    ("cfsp", "none", "cfsp"): ("cfsp", None),
    ("cfsp", "none", "cfsp_released"): (REFERENCE, None),
    ("cfsp", "least_squares", "cfsp"): ("refit", "auto"),
    ("obs (fisher)", "least_squares", "cfsp"): ("obs_fisher", 1.0),
    ("wanda_sp", "least_squares", "error_curves with blocks"): ("ladder", 0.1),
}
"""Criterion, compensation and allocator -> the preset that has them, `+experiment=NAME`, and its ridge."""
RIDGE = 0.1
"""The ridge of `compensation=least_squares`."""

DRAWN = (
    "refit",
    "refit (ridge 1, relative)",
    "obs_fisher (ridge auto)",
    "wanda_sp / least_squares",
    "taylor / least_squares",
    "flap / least_squares / global_rank",
    REFERENCE,
    "wanda_sp",
    "taylor",
)
"""The methods of the figure: the best of ours, the usual ones with least squares, and three without."""
DRAWN_IN_DOMAIN = ("obs_fisher", "refit (ridge 1, relative)", REFERENCE)
"""Those of the figure that are calibrated on the kind of text that is tested."""
DRAWS = 10_000


def method(record: Record) -> str:
    """Return the preset, or criterion, compensation and allocator without defaults; then their options."""
    names = [part_name(record.config[part]) for part in ("criterion", "compensation", "allocator")]
    options = []
    if record.config["criterion"].get("metric") == "fisher":
        names[0] += " (fisher)"
    if record.config["allocator"].get("drop_blocks"):
        names[2] += " with blocks"
    name, ridge = PRESETS.get((names[0], names[1], names[2]), ("", RIDGE))
    name = name or " / ".join(one for one in names if one not in ("none", "uniform"))
    own = record.config["compensation"].get("ridge", ridge)
    if names[1] == "least_squares" and own != ridge:
        options.append(f"ridge {own if isinstance(own, str) else format(own, 'g')}")
    if record.config["compensation"].get("towards") == "zero":
        options.append("towards zero")
    if record.config["compensation"].get("tokens") == "relative":
        options.append("relative")
    if rounds := record.config["allocator"].get("rounds"):
        options.append(f"joint, {rounds}")
    return name + (f" ({', '.join(options)})" if options else "")


def ratios(found: Found, costs: Iterable[Record] = ()) -> pd.DataFrame:
    """Return what every method adds to the perplexity as a share of what the released CFSP adds, by sparsity.

    costs: runs that tell a method's minutes and memory; without them there are no such columns.

    Raises:
        ValueError: a sparsity without a run of the released CFSP.
    """
    (measure,) = perplexities([*found.values()])
    cells: dict[tuple[str, float], list[Path]] = {}
    for path, one in found.items():
        cells.setdefault((method(one), one.config["sparsity"]), []).append(path)
    gone = {key: fmean(found[path].sparsity["model"] for path in paths) for key, paths in cells.items()}
    rows: dict[str, dict[str, str]] = {}
    for (name, sparsity), paths in cells.items():
        if (REFERENCE, sparsity) not in cells:
            raise ValueError(f"no run of {REFERENCE} without {sparsity:.0%}; expected one to divide by")
        known = [
            added([(path, found[path]) for path in some], measure)
            for some in (paths, cells[REFERENCE, sparsity])
        ]
        text = shares(*known, itself=name == REFERENCE)
        alike = abs(gone[name, sparsity] - gone[REFERENCE, sparsity]) <= SAME
        rows.setdefault(name, {})[f"{sparsity:.0%}"] = text if alike else f"({text})"
    table = pd.DataFrame.from_dict(rows, orient="index").sort_index(axis="columns").fillna("-")
    table = table.sort_values([*table.columns][::-1], key=lambda column: column.map(first_number))
    for one in costs:
        table.loc[method(one), "plan, minutes"] = f"{one.seconds['plan'] / 60:.1f}"
        table.loc[method(one), "memory, GB"] = f"{max(one.peak_bytes.values()) / 1e9:.1f}"
    return table.fillna("-").rename_axis("method").reset_index()


def first_number(text: str) -> float:
    return float(text.strip("(").split()[0].strip(")")) if text != "-" else inf


def added(runs: Sequence[tuple[Path, Record]], measure: Measure) -> np.ndarray:
    """Return what runs add to the perplexity, the mean over seeds: first as measured, then of each draw.

    A draw takes as many windows as there are, with repeats, the same ones of every run. Runs without the
    outcomes of single windows have no draws.
    """
    value = fmean(measure.read(one) for _, one in runs) - measure.dense
    kept = [read_outcomes(path, one) for path, one in runs if one.outcomes]
    if len(kept) < len(runs):
        return np.array([value])
    (name,) = measure.names
    sides = [
        np.stack([in_order(file.read(model, name)) for file in kept]) for model in ("dense", "pruned")
    ]  # [runs, windows]
    windows = sides[0].shape[1]
    drawn = np.random.default_rng(0).integers(windows, size=(DRAWS, windows))
    dense, pruned = (np.exp(side[:, drawn].mean(-1)).mean(0) for side in sides)
    return np.array([value, *(pruned - dense)])


def shares(one: np.ndarray, released: np.ndarray, itself: bool) -> str:
    """Return the ratio of the first values, and the interval of those of the draws."""
    digits = 2 if one[0] < 100 * released[0] else 0
    text = f"{one[0] / released[0]:.{digits}f}"
    if itself or len(one) < 2 or len(released) < 2:
        return text
    low, high = np.percentile(one[1:] / released[1:], (2.5, 97.5))
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def tables(found: Found, costs: Sequence[Record] = ()) -> str:
    """Return the perplexities and the ratios of the runs of one protocol."""
    text = ratios(found, costs).to_markdown(index=False, disable_numparse=True)
    return compared(found, "markdown") + RATIOS.format(cost=COST if costs else "") + text + "\n"


def compared(found: Found, form: str) -> str:
    """Return the perplexities as a table, with marks where windows cannot tell a cell from the best."""
    (measure,) = perplexities([*found.values()])
    (one,) = marked_tables(found, measure.names[0], method)
    # Dequantised weights have zeros of their own, so densities say nothing about pruning here.
    return render([replace(one, cells=one.cells.drop(columns="density", errors="ignore"))], form)


def write(model: str) -> None:
    """Write the tables and the figure of one model."""
    found, in_domain = runs("", model), runs("_in_domain", model)
    text = INTRODUCTION.format(model=model) + tables(found, [*runs("_cost", model).values()])
    for part, windows in {"in_domain": 64, "in_domain_256": 256}.items():
        if further := runs(f"_{part}", model):
            costs = [*runs(f"_cost_{part}", model).values()]
            text += IN_DOMAIN.format(model=model, part=part, windows=windows) + tables(further, costs)
    if with_attention := runs("_with_attention", model):
        text += WITH_ATTENTION.format(model=model) + compared(with_attention, "markdown") + "\n"
    full = runs("_full", model)
    text += texts(full, method, model) + tasks(full, method, model)
    name = "real_models" if model.startswith("SmolLM2") else f"real_models_{model}"
    with rc_context(STYLE), replacing(RESULTS / "figures" / f"{name}.png") as part:
        figure(found, in_domain).savefig(part, format="png", dpi=160, metadata={"Software": None})
    for end, content in ((".md", text), (".csv", compared(found, "csv"))):
        with replacing(RESULTS / "tables" / f"{name}{end}") as part:
            part.write_text(content)


def figure(found: Found, in_domain: Found) -> Figure:
    """Draw perplexities against sizes, of the methods that `DRAWN` and `DRAWN_IN_DOMAIN` name."""
    names = {one.id: method(one) for one in found.values() if method(one) in DRAWN}
    for one in in_domain.values():
        if method(one) in DRAWN_IN_DOMAIN:
            names[one.id] = f"{method(one)}, calibrated on this kind of text"
    records = [one for one in (*found.values(), *in_domain.values()) if one.id in names]
    (measure,) = perplexities(records)
    return quality_by_size(measure, ranked(names, [measure]), looks(names.values()))


def runs(part: str, model: str) -> dict[Path, Record]:
    """Return the runs of a part of the study, by file; maybe none."""
    folder = RESULTS / f"real_models{part}" / model / "records"
    return {path: Record.load(path) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    """Write the tables and figures of results/, and the table of the first pages."""
    for folder in sorted((RESULTS / "real_models").glob("*/records")):
        write(folder.parent.name)
    text = summary(by_method(), "SmolLM2-135M-Instruct", "gemma-3-270m")
    for page in PAGES:
        put(page, text)


def by_method() -> dict[tuple[str, str], dict[str, dict[Path, Record]]]:
    """Return (model, part) -> method -> its runs, by file."""
    found: dict[tuple[str, str], dict[str, dict[Path, Record]]] = {}
    for folder in RESULTS.glob("real_models*/*/records"):
        part, model = folder.parents[1].name.removeprefix("real_models"), folder.parent.name
        if part in SUMMARISED:
            methods = found.setdefault((model, part), {})
            for path, one in runs(part, model).items():
                methods.setdefault(method(one), {})[path] = one
    return found


if __name__ == "__main__":
    main()
