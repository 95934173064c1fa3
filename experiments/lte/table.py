"""Write results/tables/lte.md and results/figures/lte.png from the records of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.report.plots.base import (
    DENSE,
    STYLE,
    add_legend,
    empty_panels,
    looks,
    method_handles,
    show_active,
    show_logarithmic,
)
from cfsp.storage.atomic import replacing
from cfsp.training.routing_options import RoutingOptions

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# Routed MLPs: quality against the share of active neurons

Written by `experiments/lte/run.sh`; its [README](../../experiments/lte/README.md) says what the rows are.
`active` is measured on the evaluation text; of a cut model it is the share of neurons left. `union`: neurons
that 4 and 16 tokens of different sequences use together. `of a trained model`: routers are made of a dense
model that has trained for the same steps; `then training`: the model trains with its routers. LTE and rows
with `then training` have the dense model as teacher; only `dense, then training` and `no teacher` have none.
TEAL and WINA have one share for all matrices, except those that were `searched`: these have one per matrix.
"""
STUDIES = {
    "lte": ("The embedded model", "perplexity"),
    "lte-encoder": ("MiniLM-L6, SST-2", "accuracy"),
    "lte-real": ("SmolLM2-135M-Instruct, WikiText-2", "perplexity"),
}
"""Folder of records -> the title and the figure of its table."""
METRIC = "perplexity/stdlib:test"
TRAINED = ", then training"
STEPS = 200
"""Of the trainings in the figure."""
PANELS = {False: "without training", True: f"with {STEPS} steps of training"}
DRAWN = ("LTE", "LTE, of single neurons", "Deja Vu", "MoEfication", "oracle", "TEAL", "WINA", "cfsp, cut")
"""Methods of the figure, in the legend's order."""
ORDER = ("asked", "method", "seed")


def method(record: Record) -> str:
    """Return the way in which the active neurons are chosen."""
    schedule = record.config["schedule"]
    path = ", of a trained model" if "lte-trained" in record.config["model"]["path"] else ""
    path += ", then training" if record.trained else ""
    if "maker" in schedule:
        maker = schedule["maker"]
        name = {"Oracle": "oracle", "Threshold": "TEAL"}.get(
            maker["_target_"].rpartition(".")[2], "MoEfication"
        )
        name = "WINA" if maker.get("weighted") else "Deja Vu" if maker.get("signs") else name
        return name + (", searched" if maker.get("search") == "greedy" else "") + path
    if "active" in schedule:
        taught = "Distillation" in schedule["objective"]["_target_"]
        return ", ".join(["LTE", *other_than_usual(schedule["pruner"]), *([] if taught else ["no teacher"])])
    if not record.config["sparsity"]:
        taught = "Distillation" in record.config["recovery"]["objective"]["_target_"]
        return "dense, then training" + (" with itself as teacher" if taught else "")
    return f"{part_name(record.config['criterion'])}, cut, then training"


def other_than_usual(pruner: Mapping[str, Any]) -> list[str]:
    """Return what an ablation changed of LTE's routers."""
    usual = RoutingOptions()
    names = {
        "grouping": "groups by {}",
        "separability": "lambda {}",
        "start": "start {}",
        "initial": "{} routers",
    }
    changed = [name for name in names if pruner[name] != getattr(usual, name)]
    single = ["of single neurons"] if pruner["expert_size"] == 1 else []
    return [*single, *(names[name].format(pruner[name]) for name in changed)]


def row(record: Record, figure: str) -> dict[str, object]:
    """Return one run as a row of the table."""
    values = {name.partition("/")[0]: one.value for name, one in record.metrics["pruned"].items()}
    left = 1 - record.sparsity["sites"]
    return {
        "method": method(record),
        "seed": record.config["seed"],
        "asked": f"{asked_of(record):.1%}",
        "active": f"{values['active_share'] * left:.1%}",
        "union of 4": f"{values['union_share_of_4'] * left:.1%}",
        "union of 16": f"{values['union_share_of_16'] * left:.1%}",
        "GFLOPs": f"{values['gflops_per_token']:.4f}",
        figure: f"{values[figure]:.2f}" if figure == "perplexity" else f"{values[figure]:.2%}",
        "steps": steps_of(record),
    }


def section(folder: str) -> str:
    """Return the table of one model below its title; nothing without records."""
    title, figure = STUDIES[folder]
    found = [*records(RESULTS / folder / "records")]
    if not found:
        return ""
    rows = sorted((row(one, figure) for one in found), key=lambda one: [one[name] for name in ORDER])
    dense = {
        one.value
        for record in found
        for name, one in record.metrics["dense"].items()
        if name.startswith(figure)
    }
    told = ", ".join(f"{one:.2f}" if figure == "perplexity" else f"{one:.2%}" for one in sorted(dense))
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"\n## {title}: {figure}, dense {told}\n\n{table}\n"


def figure(found: Sequence[Record]) -> Figure:
    """Draw perplexity against the share of active neurons, means over seeds, without training and with it."""
    lines: dict[str, dict[str, dict[float, list[Record]]]] = {title: {} for title in PANELS.values()}
    for record in found:
        name = method(record)
        title, label = PANELS[TRAINED in name or name.startswith("LTE")], name.removesuffix(TRAINED)
        if label in DRAWN and steps_of(record) in (0, STEPS):
            lines[title].setdefault(label, {}).setdefault(asked_of(record), []).append(record)
    styles = looks(DRAWN)
    drawing, panels = empty_panels(1, len(lines), 2.6, DRAWN)
    for axes, (title, methods) in zip(panels, lines.items(), strict=True):
        values = [dense_of(found)]
        line = axes.axhline(values[0], color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
        for label in sorted(methods, key=DRAWN.index):
            cells = [methods[label][share] for share in sorted(methods[label])]
            means = [fmean(one.metrics["pruned"][METRIC].value for one in cell) for cell in cells]
            axes.plot([fmean(map(used, cell)) for cell in cells], means, **styles[label].line)
            values += means
        axes.set_title(title)
        axes.set_ylabel("perplexity (lower is better)")
        show_active(axes)
        show_logarithmic(axes, values)
        axes.margins(y=0.12)
    add_legend(drawing, {**method_handles(DRAWN, styles), "dense": line})
    return drawing


def steps_of(record: Record) -> int:
    """Return the steps of the routers' training, or of the one after them; 0 without."""
    return (record.schedule_training or record.trained).get("steps", 0)


def asked_of(record: Record) -> float:
    return record.config["schedule"].get("active", 1 - record.config["sparsity"])


def used(record: Record) -> float:
    """Return the share of neurons that a token uses; of a cut model those that are left."""
    return record.active * (1 - record.sparsity["sites"])


def dense_of(found: Sequence[Record]) -> float:
    return found[0].metrics["dense"][METRIC].value


def main() -> None:
    with replacing(RESULTS / "tables" / "lte.md") as part:
        part.write_text(INTRODUCTION + "".join(map(section, STUDIES)))
    if found := [*records(RESULTS / "lte" / "records")]:
        with rc_context(STYLE), replacing(RESULTS / "figures" / "lte.png") as part:
            figure(found).savefig(part, format="png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
