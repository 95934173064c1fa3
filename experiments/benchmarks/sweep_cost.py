"""Measure the cost of a sweep, against one calibration and the evaluations, which cannot be shared.

    python experiments/benchmarks/sweep_cost.py [--markdown FILE]

A sweep of 4 criteria x 5 sparsities on the embedded model runs in this process with an empty cache, timed by
wall clock after all imports; an earlier run has read the texts. Its parts are timed separately: one
calibration that collects what all four criteria and the allocator need, and each of the 20 evaluations,
whose seconds are in the records.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch

from cfsp import collect, find_sites, load
from cfsp.cli.main import main as cfsp
from cfsp.data.calibration import RandomWindows
from cfsp.data.texts import Stdlib
from cfsp.records.record import Record, records
from cfsp.running.build import choice_config
from cfsp.statistics.cached import SHARED

CRITERIA = ("magnitude", "wanda_sp", "flap", "cfsp")
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


def run(*arguments: str) -> float:
    """Return the seconds that the command takes in this process."""
    sys.argv = ["cfsp", *arguments]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w") as out, redirect_stdout(out):
        cfsp()
    return time.perf_counter() - start


def calibration() -> float:
    """Return the seconds of one pass for everything that the sweep needs of the calibration text."""
    model, tokenizer = load("reference")
    options = choice_config("calibration", "stdlib", seed=0)
    windows = RandomWindows(
        Stdlib("calibration"), options.samples, options.seqlen, options.batch_size, options.seed
    )
    batches = windows.batches(tokenizer)
    start = time.perf_counter()
    collect(model, find_sites(model, ["mlp"]), batches, SHARED)
    return time.perf_counter() - start


def report(folder: Path) -> str:
    warm, swept = folder / "warm", folder / "swept"
    run(f"results={warm}", "calibration.samples=8", "evaluation=[perplexity]")
    sweep = ["-m", f"criterion={','.join(CRITERIA)}", f"sparsity={','.join(map(str, SPARSITIES))}"]
    sweep += [f"results={swept}"]
    before = calibration()
    wall = run(*sweep)
    after = calibration()
    found = [*records(swept / "records")]
    again = run(*sweep)
    return text(found, wall, again, (before + after) / 2)


def text(found: list[Record], wall: float, again: float, calibrated: float) -> str:
    evaluations = [record.seconds["evaluation"] for record in found]
    dense = max(record.seconds["dense evaluation"] for record in found)
    plans = sum(record.seconds["plan"] for record in found)
    rest = wall - sum(evaluations) - dense - plans
    parts = calibrated + sum(evaluations)
    return f"""# What a sweep costs

`python experiments/benchmarks/sweep_cost.py`

{len(CRITERIA)} criteria ({", ".join(CRITERIA)}) x {len(SPARSITIES)} sparsities on the embedded model,
one process, an empty cache; torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} CPU
threads.

| | seconds |
|---|---|
| the sweep of {len(found)} runs, by wall clock | {wall:.1f} |
| one calibration | {calibrated:.1f} |
| {len(found)} evaluations, {statistics.median(evaluations):.2f} in the median | {sum(evaluations):.1f} |
| one evaluation of the dense model | {dense:.1f} |
| {len(found)} plans, with the calibrations among them | {plans:.1f} |
| configs, loading, surgery, records: {rest / len(found):.2f} a run | {rest:.1f} |
| the same sweep again: all records are read | {again:.1f} |

The sweep costs **{wall / parts:.2f}** times one calibration and {len(found)} evaluations ({parts:.1f} s).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = report(Path(folder))
    print(made)
    if options.markdown:
        options.markdown.write_text(made)


if __name__ == "__main__":
    main()
