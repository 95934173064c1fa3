"""Restarts: what a killed training left behind, and what of it may be gone on with.

A checkpoint is whole once its marker is written, which is last of all. A plan is kept with the digest
of all that it was made from, and counts only for a run that would make it from the same.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from cfsp.atomic import replacing
from cfsp.plans import PrunePlan
from cfsp.record import is_main

WHOLE = "whole.json"
MADE_FROM = "made_from"


def mark_whole(checkpoint: Path, ended: bool) -> None:
    """Say that all of a checkpoint is written. ended: whether training was over with it."""
    with replacing(checkpoint / WHOLE) as part:
        part.write_text(json.dumps({"ended": ended}) + "\n")


def newest_whole(folder: Path) -> Path | None:
    """The last checkpoint that is whole."""
    return next((path for path in checkpoints(folder) if (path / WHOLE).is_file()), None)


def has_ended(checkpoint: Path) -> bool:
    """Whether training was over with this whole checkpoint."""
    return json.loads((checkpoint / WHOLE).read_text())["ended"]


def drop_torn(folder: Path) -> None:
    """Delete what was being written when a process was killed, and name it on stderr."""
    for path in checkpoints(folder) if is_main() else ():
        if not (path / WHOLE).is_file():
            print(f"cfsp: {path} was not written to its end and is left out", file=sys.stderr)
            shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the last one first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def keep_plan(folder: Path, plan: PrunePlan, made_from: str) -> None:
    """Keep a plan for when the training that follows is killed. made_from: a digest."""
    plan.save(folder)
    with replacing(folder / MADE_FROM) as part:
        part.write_text(made_from + "\n")


def kept_plan(folder: Path, made_from: str) -> PrunePlan | None:
    """The plan that an interrupted training began with; made from anything else, both are deleted."""
    if not folder.exists():
        return None
    mark = folder / MADE_FROM
    if mark.is_file() and mark.read_text().strip() == made_from:
        print(f"cfsp: going on with the training in {folder}; delete it to begin anew", file=sys.stderr)
        return PrunePlan.load(folder)
    if is_main():
        print(f"cfsp: the model or the data is not what {folder} began with; it begins anew", file=sys.stderr)
        shutil.rmtree(folder)
    return None
