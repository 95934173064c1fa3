"""Measure the time that a sweep spends on loading models and texts.

    python experiments/benchmarks/load_cost.py TEXT [--recovery] [--markdown FILE]

Three sweeps of six jobs on the embedded model calibrate and measure perplexity on TEXT, a .txt file: one in
one process with an empty cache, one in a new process with the first one's cache, and one of two joblib
workers with an empty cache. Each job's seconds of the stage `load` come from its record. --recovery trains
LoRA on TEXT for a step, so that its examples are read too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cfsp.records.record import records

SPARSITIES = "0.1,0.2,0.3,0.4,0.5,0.6"
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
RECOVERY = (
    "recovery=lora",
    "recovery/data=text",
    "recovery.training.max_steps=1",
    "recovery.data.limit=16",
    "recovery.data.held_out=8",
)


def sweep(text: Path, folder: Path, name: str, *others: str) -> list[float]:
    """Return the seconds that each job of a sweep spends on `load`, in the order in which they ended."""
    paths = f"paths=[{text.resolve()}]"
    subprocess.run(
        [
            *(sys.executable, "-m", "cfsp", "-m", "criterion=magnitude", f"sparsity={SPARSITIES}"),
            *(f"results={folder / name}", "calibration=text", f"calibration.text.{paths}"),
            *(
                "calibration.samples=4",
                "evaluation=perplexity_text",
                f"evaluation.perplexity_text.text.{paths}",
            ),
            *("evaluation.perplexity_text.windows=4", *others),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = sorted(records(folder / name / "records"), key=lambda record: record.created)
    return [record.seconds["load"] for record in found]


def report(text: Path, folder: Path, recovery: bool) -> str:
    trained = [*RECOVERY, f"recovery.data.sources.text.text.paths=[{text.resolve()}]"] if recovery else []
    rows = {
        "one process, no cache yet": sweep(text, folder, "first", f"cache={folder}/cache", *trained),
        "another process, cached": sweep(text, folder, "second", f"cache={folder}/cache", *trained),
        "two joblib workers, no cache yet": sweep(text, folder, "third", *JOBLIB, *trained),
    }
    table = "\n".join(
        f"| {name} | {seconds[0]:.2f} | {statistics.median(seconds[1:]):.2f} | {max(seconds[1:]):.2f} |"
        for name, seconds in rows.items()
    )
    return f"""# What a sweep spends on loading

`python experiments/benchmarks/load_cost.py {text.name}{" --recovery" if recovery else ""}`

Seconds of the stage `load` of six jobs on the embedded model and {text.stat().st_size / 1e6:.1f} MB of text;
torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} CPUs.

| sweep | first job | later jobs, median | most |
|---|---|---|---|
{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a .txt file")
    parser.add_argument("--recovery", action="store_true", help="train LoRA on it for a step")
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = report(options.text, Path(folder), options.recovery)
    print(made)
    if options.markdown:
        options.markdown.write_text(made)


if __name__ == "__main__":
    main()
