"""Write results/tables/lorashear.md from the records in results/lorashear."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cfsp.records.identity import part_name
from cfsp.records.record import Record, records
from cfsp.storage.atomic import replacing

RESULTS = Path(__file__).resolve().parents[2] / "results"
KEY = ["model", "asked", "method", "length", "rate", "window"]
"""What runs have in common that differ in their seed only."""

INTRODUCTION = """# LoRAShear against cutting first

Written by `experiments/lorashear/run.sh`; its [README](../../experiments/lorashear/README.md) says what the
rows are. `length` is the steps of each training, `rate` its learning rate, `window` its tokens per example;
pruning + recovery, where they differ. `tokens` are those of all training, of pruning and recovery.
Perplexity: mean and standard deviation over seeds.
"""


def method(record: Record) -> str:
    """Return what was done, by the config."""
    config = record.config
    if record.schedule_training is None:
        names = [part_name(config[part]) for part in ("criterion", "compensation", "recovery")]
        parameters = config["recovery"].get("parameters", {}).get("proportional_to", "uniform")
        return " + ".join([name for name in names if name != "none"]) + (
            "" if parameters == "uniform" else f" ({parameters})"
        )
    without = [
        name
        for name, missing in (
            ("no knowledge", config["allocator"]["protect"] != "knowledge"),
            ("no half-space", config["schedule"]["pruner"]["variant"] != "paper"),
            ("uniform data", config["recovery"].get("balance") == 1),
        )
        if missing
    ]
    return ", ".join(["lorashear", *without])


def conditions(record: Record) -> dict[str, str]:
    """Return the length, the rate and the window of each training. Only runs that agree in them are seeds."""
    config = record.config
    parts = [config[part] for part in ("schedule", "recovery") if "training" in config[part]]
    found = {
        "length": [one["training"]["max_steps"] for one in parts],
        "rate": [one["training"]["learning_rate"] for one in parts],
        "window": [one["data"]["window"] for one in parts],
    }
    return {name: " + ".join(dict.fromkeys(map(str, values))) for name, values in found.items()}


def row(record: Record) -> dict[str, object]:
    """Return one run as a row."""
    pruned, trainings = record.metrics["pruned"], (record.schedule_training or {}, record.trained)
    values = {name: one.value for name, one in pruned.items() if name.startswith(("perplexity/", "acc"))}
    return {
        "model": Path(str(record.config["model"]["path"])).name,
        "method": method(record),
        "asked": f"{record.config['sparsity']:.0%}",
        **conditions(record),
        "model gone": record.sparsity["model"],
        "tokens": sum(training.get("tokens", 0) for training in trainings),
        "minutes": sum(training.get("seconds", 0) for training in trainings) / 60,
        **values,
    }


def table(runs: pd.DataFrame) -> str:
    """Return the rows of one model as a Markdown table, a row per method with its seeds."""
    groups = runs.dropna(axis=1, how="all").groupby(KEY, sort=True)
    rows = groups.mean(numeric_only=True).round(3)
    rows["tokens"] = rows["tokens"].map("{:,.0f}".format)
    rows.insert(0, "seeds", groups.size())
    spread = groups.std(numeric_only=True)
    for name in [name for name in rows if name.startswith("perplexity/")]:
        rows[name] = [
            f"{mean:.2f} ± {std:.2f}" if std == std else f"{mean:.2f}"
            for mean, std in zip(rows[name], spread[name], strict=True)
        ]
    return rows.reset_index().drop(columns="model").to_markdown(index=False, disable_numparse=True)


def main() -> None:
    found = [
        *records(RESULTS / "lorashear" / "records"),
        *records(RESULTS / "lorashear" / "real" / "records"),
    ]
    if not found:
        raise SystemExit(
            "no records in results/lorashear; expected experiments/lorashear/run.sh rivals first"
        )
    text = INTRODUCTION
    for model, runs in pd.DataFrame([row(one) for one in found]).groupby("model", sort=False):
        own = [one for one in found if Path(str(one.config["model"]["path"])).name == model]
        dense = {f"{name} {one.value:.4g}" for record in own for name, one in record.metrics["dense"].items()}
        text += f"\n**{model}**, dense: {', '.join(sorted(dense))}\n\n{table(runs)}\n"
    with replacing(RESULTS / "tables" / "lorashear.md") as part:
        part.write_text(text)


if __name__ == "__main__":
    main()
