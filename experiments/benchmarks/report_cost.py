"""Measure the seconds and bytes of a page of many runs by `cfsp-report`.

    python experiments/benchmarks/report_cost.py [--runs 2000] [--models 4] [--everything] [--markdown FILE]

The record of a short run of the embedded model is varied: 5 criteria x 4 sparsities x 3 seeds per
calibration, and as many calibrations per model as needed. The command then runs in this process, after all
imports. CPU time is measured, because pages are often drawn beside running jobs. With --everything the run
has latencies and a recovery too.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import count, islice, product
from pathlib import Path
from random import Random
from typing import Any

from cfsp.cli.main import main as cfsp
from cfsp.cli.report import main as cfsp_report
from cfsp.records.identity import run_id
from cfsp.records.record import Metric, Record

CRITERIA = {"magnitude": "Magnitude", "chance": "Chance", "depth": "Depth", "flap": "FLAP", "cfsp": "CFSP"}
SPARSITIES = (0.1, 0.2, 0.3, 0.5)
SEEDS = (0, 1, 2)
PLAIN = """evaluation=[perplexity] evaluation.perplexity.windows=2 calibration.samples=4
calibration.seqlen=64"""
LATENCY = """evaluation.latency.repeats=2 evaluation.latency.batch_sizes=[1] evaluation.latency.prompts=[32]
evaluation.latency.new_tokens=4"""
RECOVERY = """recovery=lora recovery.data.limit=32 recovery.data.held_out=8 recovery.data.window=64
recovery.training.evaluate_every=2 recovery.training.warmup=1"""
EVERYTHING = " ".join([PLAIN.replace("[perplexity]", "[perplexity,latency]"), LATENCY, RECOVERY])


def real_record(folder: Path, options: str) -> Record:
    """Return the record of a short run of the embedded model."""
    sys.argv = ["cfsp", f"results={folder}", *options.split()]
    with tempfile.TemporaryFile("w") as out, redirect_stdout(out):
        cfsp()
    (path,) = (folder / "records").iterdir()
    return Record.load(path)


def varied(one: Record, models: int) -> Iterator[Record]:
    """Yield variations of a record without end: other methods, sparsities, seeds, models, calibrations."""
    dice = Random(0)
    for samples in count(4):
        for model, (name, target), sparsity, seed in product(
            range(models), CRITERIA.items(), SPARSITIES, SEEDS
        ):
            part = {"_target_": f"cfsp.criteria.{name}.{target}"}
            config = {
                **one.config,
                "criterion": part,
                "sparsity": sparsity,
                "seed": seed,
                "model": one.config["model"] | {"path": f"models/model-{model}"},
                "calibration": one.config["calibration"] | {"samples": samples, "seed": seed},
            }
            yield measured(replace(one, id=run_id(config), config=config), dice)


def measured(one: Record, dice: Random) -> Record:
    """Return the record with other figures, of the usual number of digits."""
    share = one.config["sparsity"] * dice.uniform(0.99, 1.01)
    dense = one.parameters["dense"]
    pruned = {base: round(size * (1 - share / 2)) for base, size in dense.items()}
    metrics = {name: worse(metric, share, dice) for name, metric in one.metrics["pruned"].items()}
    config = one.config
    words = [f"criterion={config['criterion']['_target_']}", f"sparsity={config['sparsity']}"]
    words += [f"seed={config['seed']}", f"model.path={config['model']['path']}"]
    return replace(
        one,
        parameters={"dense": dense, "pruned": pruned},
        sparsity={base: 1 - pruned[base] / dense[base] for base in dense},
        widths={site: [units, round(units * (1 - share))] for site, (units, _) in one.widths.items()},
        metrics={"dense": one.metrics["dense"], "pruned": metrics},
        seconds={stage: round(dice.uniform(0, 9), 3) for stage in one.seconds},
        command=" ".join([one.command or "cfsp", *words]),
    )


def worse(metric: Metric, share: float, dice: Random) -> Metric:
    value = metric.value * (1 + share * dice.uniform(0.5, 2))
    spread = metric.spread and [value * 0.95, value * 1.1]
    return replace(metric, value=value, spread=spread)


def report(folder: Path, options: Mapping[str, Any]) -> str:
    one = real_record(folder / "one", EVERYTHING if options["everything"] else PLAIN)
    for record in islice(varied(one, options["models"]), options["runs"]):
        record.save(folder / "many")
    page, seconds = folder / "report.html", []
    for records in (folder / "one", folder / "many"):
        start = time.process_time()
        with tempfile.TemporaryFile("w") as out, redirect_stdout(out):
            cfsp_report([str(records / "records"), "--output", str(page)])
        seconds.append(time.process_time() - start)
    runs, size = options["runs"], page.stat().st_size
    return f"""A page of {runs} runs of {options["models"]} models, {platform.machine()}, one thread.

| | |
|---|---:|
| seconds of the processor | {seconds[1]:.1f} |
| milliseconds a run | {1000 * seconds[1] / runs:.2f} |
| MB | {size / 1e6:.2f} |
| bytes a run | {size / runs:.0f} |
| seconds of a page of one run | {seconds[0]:.1f} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--everything", action="store_true", help="runs with latencies and a recovery")
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = report(Path(folder), vars(options))
    print(made)
    if options.markdown:
        options.markdown.write_text(made)


if __name__ == "__main__":
    main()
