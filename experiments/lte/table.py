"""Write results/tables/lte.md from the records in results/lte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.storage.atomic import replacing
from cfsp.training.routing_options import RoutingOptions

RESULTS = Path(__file__).resolve().parents[2] / "results"
INTRODUCTION = """# The embedded model with routed MLPs: perplexity against the share of active neurons

Written by `experiments/lte/run.sh`; its [README](../../experiments/lte/README.md) says what the rows are.
`active` is measured on the evaluation text; of a cut model it is the share of neurons left. `union`: neurons
that 4 and 16 tokens of different sequences use together. `of a trained model`: routers are made of a dense
model that has trained for the same steps; `then training`: the model trains with its routers. LTE and rows
with `then training` have the dense model as teacher; only `dense, then training` has none. TEAL and WINA
have one share for all matrices, except those that were `searched`: these have one per matrix.

"""


def method(record: Record) -> str:
    """Return the way in which the active neurons are chosen."""
    schedule = record.config["schedule"]
    path = "" if record.config["model"]["path"] == "reference" else ", of a trained model"
    path += ", then training" if record.trained else ""
    if "maker" in schedule:
        maker = schedule["maker"]
        name = {"Oracle": "oracle", "Threshold": "TEAL"}.get(
            maker["_target_"].rpartition(".")[2], "MoEfication"
        )
        name = "WINA" if maker.get("weighted") else "Deja Vu" if maker.get("signs") else name
        return name + (", searched" if maker.get("search") == "greedy" else "") + path
    if "active" in schedule:
        return ", ".join(["LTE", *other_than_usual(schedule["pruner"])])
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
    return [text.format(pruner[name]) for name, text in names.items() if pruner[name] != getattr(usual, name)]


def row(record: Record) -> dict[str, object]:
    """Return one run as a row of the table."""
    values = {name.partition("/")[0]: one.value for name, one in record.metrics["pruned"].items()}
    left = 1 - record.sparsity["sites"]
    training = record.schedule_training or record.trained
    return {
        "method": method(record),
        "seed": record.config["seed"],
        "asked": f"{record.config['schedule'].get('active', 1 - record.config['sparsity']):.0%}",
        "active": f"{values['active_share'] * left:.1%}",
        "union of 4": f"{values['union_share_of_4'] * left:.1%}",
        "union of 16": f"{values['union_share_of_16'] * left:.1%}",
        "GFLOPs": f"{values['gflops_per_token']:.4f}",
        "perplexity": f"{values['perplexity']:.2f}",
        "steps": training.get("steps", 0),
    }


def main() -> None:
    found = [*records(RESULTS / "lte" / "records")]
    table = pd.DataFrame(sorted(map(row, found), key=lambda one: (one["asked"], one["method"], one["seed"])))
    with replacing(RESULTS / "tables" / "lte.md") as part:
        part.write_text(INTRODUCTION + table.to_markdown(index=False, disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
