"""Write results/tables/block_pruning.md from the records in results/block_pruning."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.storage.atomic import replacing

RESULTS = Path(__file__).resolve().parents[2] / "results"
METRIC = "accuracy/sst2"
INTRODUCTION = """# MiniLM-L6 on SST-2: learned masks against one-shot methods

Written by `experiments/block_pruning/run.sh`; its [README](../../experiments/block_pruning/README.md) names
the data. Every row trained for the same number of steps on the same rows. Accuracy in per cent on 6,735
phrases; its standard error is about 0.35. `density`: weights of the encoder's blocks that are not zero.
Speed-up: dense time / time of one pass, median of the rounds, dense and pruned in turns.

"""


def method(record: Record) -> str:
    """Return the way in which the units were chosen."""
    config = record.config
    if record.schedule_training is None:
        names = [part_name(config[part]) for part in ("criterion", "compensation")]
        return " + ".join([name for name in names if name != "none"]) + ", then training"
    pruner = config["schedule"]["pruner"]
    taught = "" if config["schedule"]["objective"].get("logit_weight") else ", no teacher"
    mask = "" if pruner["mask"] == "soft" else f", {pruner['mask']}"
    return f"movement, {pruner['variant']}{mask}{taught}"


def row(record: Record) -> dict[str, object]:
    """Return one run as a row of the table."""
    pruned, training = record.metrics["pruned"], record.schedule_training or record.trained
    speeds = {
        f"speed-up, {name.split('/')[1]}": f"{metric.value:.2f}"
        for name, metric in sorted(pruned.items())
        if name.startswith("forward_speedup")
    }
    return {
        "method": method(record),
        "seed": record.config["seed"],
        "asked": f"{record.config['sparsity']:.0%}",
        "sites gone": f"{record.sparsity['sites']:.1%}",
        "model gone": f"{record.sparsity['model']:.1%}",
        "density": "" if record.density is None else f"{record.density:.1%}",
        "accuracy": f"{100 * pruned[METRIC].value:.2f}",
        **speeds,
        "steps": training.get("steps"),
        "minutes": f"{training.get('seconds', 0) / 60:.0f}",
    }


def main() -> None:
    found = [*records(RESULTS / "block_pruning" / "records")]
    dense = {f"{100 * one.metrics['dense'][METRIC].value:.2f}" for one in found if one.config["sparsity"]}
    cut = sorted(
        (one for one in found if one.config["sparsity"]),
        key=lambda one: (one.config["sparsity"], method(one)),
    )
    table = pd.DataFrame([row(one) for one in cut]).fillna("")
    text = f"{INTRODUCTION}Dense, fine-tuned by `run.sh dense`: {', '.join(sorted(dense))}.\n\n"
    with replacing(RESULTS / "tables" / "block_pruning.md") as part:
        part.write_text(text + table.to_markdown(index=False, disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
