"""Write the table and the figure of the runs in results/block_pruning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from cfsp.records.identity import part_name
from cfsp.records.record import Metric, Record, records
from cfsp.report.groups import Measure
from cfsp.report.plots.base import STYLE, looks
from cfsp.report.plots.quality import quality_by_size
from cfsp.storage.atomic import replacing
from cfsp.tables.paired import bootstrap

RESULTS = Path(__file__).resolve().parents[2] / "results"
METRIC = "accuracy/sst2"
INTRODUCTION = """# MiniLM-L6 on SST-2: learned masks against one-shot methods

Written by `experiments/block_pruning/run.sh`; its [README](../../experiments/block_pruning/README.md) names
the data and what has been run: a part, with SPARSITIES, VARIANTS and CRITERIA one at a time; `steps` is
STEPS. Rows of equal `steps` trained on the same rows. `accuracy`: per cent of the 872 sentences of GLUE's
validation split (`run.sh validate`); its standard error is about 1.1. `against dense`: the difference in
points with the 95 % interval of a paired bootstrap over sentences. `phrases`: per cent of 6,735 phrases that
were held out of the training split; most of them are parts of sentences that were trained on.
`density`: weights of the encoder's blocks that are not zero.
`MACs`: multiplications of a token among 32, dense / pruned. Speed-up: dense time / time of one pass,
two threads, median of 21 rounds with its range, dense and pruned in turns; `1 x 32` is one text of 32
tokens; rows without it were not timed. The machine was shared, so minutes are upper bounds.

![Accuracy by size](../figures/block_pruning.png)

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
    filled = " filled" if record.trained else ""
    return f"movement, {pruner['variant']}{filled}{mask}{taught}"


def trained(record: Record, what: str) -> float:
    """Return the steps or the seconds of the schedule's and the recovery's training together."""
    return sum(one[what] for one in (record.schedule_training, record.trained) if one)


def speed(found: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return column -> the speed-up of one model with its range."""
    columns = {}
    for name, (middle, low, high) in sorted(found.items()):
        batch, prompt = name.split("/b")[1].split("xp")
        columns[f"speed-up, {batch} x {prompt}"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return columns


def against(one: Sequence[int], other: Sequence[int]) -> str:
    """Return by how many points the other is better, with its interval. Hits on the same sentences."""
    lost, won = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((one, other), (other, one)))
    low, high = bootstrap(lost, won, len(one))
    return f"{100 * (won - lost) / len(one):+.2f} ({100 * low:+.1f} to {100 * high:+.1f})"


def row(
    record: Record,
    hits: Mapping[str, Sequence[int]],
    speeds: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, object]:
    """Return one run as a row of the table. hits: of each model on the validation split."""
    dense, pruned = (record.metrics[stage] for stage in ("dense", "pruned"))
    own = hits[record.id]
    missed = "" if (record.schedule_training or {}).get("met", True) else " (asked share not reached)"
    return {
        "method": method(record) + missed,
        "seed": record.config["seed"],
        "asked": f"{record.config['sparsity']:.0%}",
        "sites gone": f"{record.sparsity['sites']:.1%}",
        "model gone": f"{record.sparsity['model']:.1%}",
        "density": "" if record.density is None else f"{record.density:.1%}",
        "accuracy": f"{100 * fmean(own):.2f}",
        "against dense": against(hits["dense"], own),
        "phrases": f"{100 * pruned[METRIC].value:.2f}",
        "MACs": f"{dense['macs_per_token'].value / pruned['macs_per_token'].value:.2f}",
        **speed(speeds.get(record.id, {})),
        "steps": trained(record, "steps"),
        "minutes": f"{trained(record, 'seconds') / 60:.0f}",
    }


def figure(cut: Sequence[Record], hits: Mapping[str, Sequence[int]]) -> Figure:
    """Draw accuracy by the size of the model, a line per method and number of steps."""
    names = {record.id: f"{method(record)}, {trained(record, 'steps'):,} steps" for record in cut}
    protocol = {**cut[0].metrics["dense"][METRIC].protocol, "text": "GLUE's validation split"}

    def validated(record: Record) -> Record:
        own = Metric(fmean(hits[record.id]), None, len(hits["dense"]), "higher", protocol)
        return replace(record, metrics={**record.metrics, "pruned": {METRIC: own}})

    runs = tuple(map(validated, cut))
    measure = Measure("accuracy", (METRIC,), protocol, fmean(hits["dense"]), "higher", runs)
    return quality_by_size(measure, names, looks(names.values()))


def main() -> None:
    """Write results/tables/block_pruning.md and results/figures/block_pruning.png."""
    found = [*records(RESULTS / "block_pruning" / "records")]
    cut = sorted(
        (one for one in found if one.config["sparsity"]),
        key=lambda one: (one.config["sparsity"], method(one), one.config["seed"]),
    )
    validated = RESULTS / "block_pruning" / "validation.json"
    hits = json.loads(validated.read_text()) if validated.exists() else {}
    if left := [one.id for one in cut if one.id not in hits]:
        raise SystemExit(
            f"not measured on the validation split: {', '.join(left)}; expected run.sh validate first"
        )
    phrases = {f"{100 * one.metrics['dense'][METRIC].value:.2f}" for one in cut}
    timed = RESULTS / "block_pruning" / "speed.json"
    speeds = json.loads(timed.read_text()) if timed.exists() else {}
    table = pd.DataFrame([row(one, hits, speeds) for one in cut]).fillna("")
    dense = f"{100 * fmean(hits['dense']):.2f}; phrases {', '.join(sorted(phrases))}"
    text = f"{INTRODUCTION}Dense, fine-tuned by `run.sh dense`: {dense}.\n\n"
    with replacing(RESULTS / "tables" / "block_pruning.md") as part:
        part.write_text(text + table.to_markdown(index=False, disable_numparse=True) + "\n")
    with rc_context(STYLE), replacing(RESULTS / "figures" / "block_pruning.png") as part:
        figure(cut, hits).savefig(part, format="png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
