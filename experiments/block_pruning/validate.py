"""Measure the saved models of results/block_pruning on GLUE's validation split; write validation.json there.

    experiments/block_pruning/run.sh validate

The runs' own test rows are split off the training set, whose phrases are parts of each other's sentences.
A model that has been measured is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfsp.checkpoints.load import load
from cfsp.evaluation.task import TaskScores
from cfsp.records.record import records
from cfsp.running.build import build
from cfsp.storage.atomic import replacing

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "block_pruning"
SPLIT = "data/glue/sst2_validation.jsonl"


def hits(folder: Path, task: Mapping[str, Any]) -> list[int]:
    """Return 1 for each sentence that the model in a folder labels rightly, else 0. task: a run's config."""
    measure = TaskScores(task=build({**task, "test": {**task["test"], "paths": SPLIT}}), batch_size=32)
    model, tokenizer = load(folder, head="sequence_classification")
    encoded, items = measure.encoded(tokenizer), measure.items
    answers = measure.task.answers(measure.outputs(model, tokenizer, encoded.examples), encoded, items)
    return [int(said == item.label) for said, item in zip(answers, items, strict=True)]


def main() -> None:
    cut = [record for record in records(RESULTS / "records") if record.config["sparsity"]]
    dense = {record.config["model"]["path"] for record in cut}
    if len(dense) != 1:
        raise SystemExit(f"expected runs from one dense model in {RESULTS}, not from {sorted(dense)}")
    kept = RESULTS / "validation.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    folders = {"dense": ROOT / dense.pop()} | {one.id: RESULTS / "models" / one.id for one in cut}
    for name in [name for name in folders if name not in found]:
        found[name] = hits(folders[name], cut[0].config["task"])
    with replacing(kept) as part:
        part.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
