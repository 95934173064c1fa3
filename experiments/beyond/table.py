"""Turn the records of this study into one markdown page on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfsp.record import Record, records
from cfsp.tables import compare, part_name

RESULTS = Path(__file__).parents[2] / "results" / "beyond"
INTRODUCTION = """# Least squares, greedy OBS, error curves

Written by `experiments/beyond/run.sh` and `table.py`; see their README for data and reading.
Cells: perplexity, mean ± standard deviation over seeds, if there are several (share of parameters gone)."""
STEPS = {
    "reference_steps": "the embedded model, MLPs",
    "stories260k": "stories260K on TinyStories, MLPs",
    "llama_6m": "a Llama of 5.8 M parameters on WikiText-2, MLPs",
}
DEFAULTS = {"towards": "zero", "constant": False, "ridge": 0.001}


def combination(record: Record) -> str:
    """Criterion / compensation / allocator."""
    names = (part_name(record.config[part]) for part in ("criterion", "compensation", "allocator"))
    return " / ".join(name.removesuffix("_compensation") for name in names)


def step(record: Record) -> str:
    """The combination, its schedule, and what is not as it comes."""
    config = record.config
    compensation, criterion, allocator = (config[part] for part in ("compensation", "criterion", "allocator"))
    more = [part_name(config["schedule"])] if part_name(config["schedule"]) != "one_shot" else []
    if compensation.get("target", "own") != "own":
        more.append(f"target {compensation['target']}")
    for name, usual in DEFAULTS.items():
        if compensation.get(name, usual) != usual:
            more.append(f"{name} {compensation[name]}".replace(" True", ""))
    if criterion.get("swaps"):
        more.append(f"swaps {criterion['swaps']}")
    if allocator.get("others") == "cut":
        more.append("others cut")
    return ", ".join([combination(record), *more])


def ridge(record: Record) -> str:
    return f"ridge {record.config['compensation']['ridge']}"


def metric_of(found: Sequence[Record]) -> str:
    (name,) = {name for record in found for name in record.metrics["pruned"] if "perplexity" in name}
    return name


def read(folder: str) -> list[Record]:
    return list(records(RESULTS / folder / "records"))


def sections() -> list[str]:
    parts = [INTRODUCTION]
    for folder, title in STEPS.items():
        if found := read(folder):
            parts += [f"## Step by step: {title}", compare(found, metric_of(found), step).to_markdown()]
    if found := read("windows"):
        table = compare(found, metric_of(found), ridge, "calibration.samples")
        parts += ["## Calibration windows of 512 tokens and the ridge: OBS, least squares, uniform, 50 %"]
        parts += [table.to_markdown()]
    grid = read("reference")
    for sites in (["mlp"], ["mlp", "attention"]):
        if found := [record for record in grid if record.config["sites"] == sites]:
            parts.append(
                f"## Every criterion / compensation / allocator: the embedded model, {' + '.join(sites)}"
            )
            parts.append(compare(found, metric_of(found), combination).to_markdown())
    return parts


if __name__ == "__main__":
    print("\n\n".join(sections()))
