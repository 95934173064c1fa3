"""Time the saved models of results/block_pruning in turns with the dense one; write speed.json there.

Run it on a machine that does nothing else: experiments/block_pruning/run.sh speed
A model that has been timed is not timed again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cfsp.bars import bar
from cfsp.checkpoints.load import load
from cfsp.evaluation.latency import Latency
from cfsp.records.record import records
from cfsp.storage.atomic import replacing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "block_pruning"
HEAD = "sequence_classification"
TIMING = Latency(batch_sizes=[1, 32], prompts=[32, 128], new_tokens=1, repeats=21, warmup=3)
THREADS = 2


def main() -> None:
    torch.set_num_threads(THREADS)
    cut = [record for record in records(RESULTS / "records") if record.config["sparsity"]]
    dense = {record.config["model"]["path"] for record in cut}
    if len(dense) != 1:
        raise SystemExit(f"expected runs from one dense model in {RESULTS}, not from {sorted(dense)}")
    model, tokenizer = load(ROOT / dense.pop(), head=HEAD)
    kept = RESULTS / "speed.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for record in bar([record for record in cut if record.id not in found], "speed", "model"):
        pruned, _ = load(RESULTS / "models" / record.id, head=HEAD)
        _, metrics = TIMING.run_pair(model, pruned, tokenizer)
        found[record.id] = {
            name: [metric.value, *(metric.spread or ())]
            for name, metric in metrics.items()
            if name.startswith("forward_speedup")
        }
    with replacing(kept) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
