"""Turn the records of this study into one markdown page on stdout: table.py PAGE RESULTS."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cfsp.records.record import Record, records
from cfsp.tables.compare import compare, part_name

METRIC = "perplexity/stdlib:test"
INTRODUCTION = """Written by `experiments/recovery/run.sh` and `table.py`; see their README for the reading.
Cells: perplexity, mean ± standard deviation over three seeds, (share of all parameters gone)."""
COSTS = """One thread; trainable parameters, windows of 512 tokens, how often they were seen (by
each sub-layer, where these are taught one by one), and seconds of training, upper bounds where the machine
had other work too."""


def recovery(record: Record) -> str:
    """Return what is trained, how ranks are distributed, and what it learns from."""
    config = record.config["recovery"]
    if "target" in config:
        return f"reconstruction of {config['sublayers']} sub-layers; learns the dense {config['target']}"
    if "parameters" not in config:
        return "none"
    parameters, objective = config["parameters"], config["objective"]
    ranks = f", rank by {parameters['proportional_to']}" if "proportional_to" in parameters else ""
    weights = {"labels": objective.get("label_weight", 1), "logits": objective.get("logit_weight", 0)}
    learned = " and ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)
    return f"{part_name(parameters)}{ranks}; learns {learned.removeprefix('1 ')}"


def learning_rate(record: Record) -> float:
    config = record.config["recovery"]
    return config.get("training", config)["learning_rate"]


def seen(record: Record) -> dict[str, float]:
    """Return the number of training windows, and of passes over them."""
    training = record.training
    steps = max(part["steps"] for part in training.get("sublayers", [training]))
    shown = steps * training["batch"]
    windows = min(shown, training["examples"])
    return {"windows": windows, "times": round(shown / windows, 1)}


def perplexity(record: Record) -> float:
    return record.metrics["pruned"][METRIC].value


def costs(trained: list[Record]) -> pd.DataFrame:
    """Return what each recovery trained, as means over the seeds, with the median of its seconds."""
    frame = pd.DataFrame(
        {
            "recovery": recovery(record),
            "sparsity": f"{record.config['sparsity']:.0%}",
            "learning rate": learning_rate(record),
            **seen(record),
            **{name: record.training[name] for name in ("trainable", "seconds")},
        }
        for record in trained
    )
    means = dict.fromkeys(("learning rate", "windows", "times"), "first")
    cells = frame.groupby(["recovery", "sparsity"]).agg(means | {"trainable": "mean", "seconds": "median"})
    whole = cells[["windows", "trainable", "seconds"]].round().astype(int).map("{:,}".format)
    return cells.assign(**whole)


def paired(trained: list[Record], one: str, other: str) -> pd.DataFrame:
    """Return the difference of two recoveries per seed, with equal calibration windows and batches."""
    values = {
        (recovery(record), record.config["sparsity"], record.config["seed"]): perplexity(record)
        for record in trained
    }
    sparsities = sorted({sparsity for _, sparsity, _ in values})
    seeds = sorted({seed for _, _, seed in values})
    return pd.DataFrame(
        [[values[one, share, seed] - values[other, share, seed] for seed in seeds] for share in sparsities],
        index=[f"{share:.0%}" for share in sparsities],
        columns=[f"seed {seed}" for seed in seeds],
    ).map("{:+.2f}".format)


def rates(found: list[Record]) -> pd.DataFrame:
    """Return perplexity by learning rate for one seed, from which the study's rates were chosen."""
    frame = pd.DataFrame(
        {
            "recovery": recovery(record),
            "rate": learning_rate(record),
            "steps": record.training["steps"],
            "perplexity": perplexity(record),
        }
        for record in found
    )
    table = frame.pivot(index=["recovery", "steps"], columns="rate", values="perplexity")
    return table.map(lambda value: "" if pd.isna(value) else f"{value:.2f}").reset_index()


def markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def read(results: Path, folder: str = ".") -> list[Record]:
    return list(records(results / folder / "records"))


def recovery_page(results: Path) -> list[str]:
    found = read(results)
    trained = [record for record in found if record.training]
    uniform = "lora, rank by uniform; learns labels"
    pairs = {
        "rank by importance": "lora, rank by importance; learns labels",
        "logits of the dense model": "lora, rank by uniform; learns logits",
    }
    parts = ["# Recovery: what wins at equal tokens", INTRODUCTION]
    parts += [compare(found, METRIC, recovery).to_markdown()]
    parts += ["## What each cost", COSTS, markdown(costs(trained).reset_index())]
    for name, one in pairs.items():
        parts.append(f"## {name.capitalize()}: perplexity above LoRA of uniform rank on labels, seed by seed")
        parts.append(paired(trained, one, uniform).to_markdown(disable_numparse=True))
    parts += ["## Learning rates: perplexity at 50 %, seed 0", markdown(rates(read(results, "rates")))]
    return parts


def reconstruction_page(results: Path) -> list[str]:
    parts = ["# Reconstruction, block by block, against LoRA at equal tokens", INTRODUCTION]
    parts += ["LoRA on 409,600 tokens, once: [recovery.md](recovery.md)."]
    for title, folder in (("409,600 tokens", "reconstruction"), ("40,960 tokens", "tenth")):
        found = read(results, folder)
        trained = [record for record in found if record.training]
        parts += [f"## {title}", compare(found, METRIC, recovery).to_markdown()]
        parts += [COSTS, markdown(costs(trained).reset_index())]
    parts += ["## Learning rates on 40,960 tokens: perplexity at 50 %, seed 0"]
    return [*parts, markdown(rates(read(results, "tenth_rates")))]


if __name__ == "__main__":
    write = {"recovery": recovery_page, "reconstruction": reconstruction_page}[sys.argv[1]]
    print("\n\n".join(write(Path(sys.argv[2]))))
