"""Restarts: what a killed training left behind, and from what of it a run may resume.

A checkpoint, a plan and a tuned block are valid if their seal exists, which is written last, and they match
it. The seal of a plan holds the digest of everything that it was made from; a run with other inputs ignores
the plan.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from cfsp.machine.environment import is_main
from cfsp.storage.atomic import replacing
from cfsp.storage.seals import read_seal, seal, unseal

WHOLE = "whole.json"
STATE = "trainer_state.json"


def mark_whole(checkpoint: Path, ended: bool) -> None:
    """Seal a completely written checkpoint. ended: whether training ended with it."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != WHOLE]
    seal(checkpoint / WHOLE, name_of(checkpoint), files, ended=ended)


def newest_whole(folder: Path) -> Path | None:
    """Return the last sealed checkpoint. Only `drop_torn` notices that one was altered since."""
    return next((path for path in checkpoints(folder) if (path / WHOLE).is_file()), None)


def has_ended(checkpoint: Path) -> bool:
    """Return whether training ended with this sealed checkpoint."""
    return read_seal(checkpoint / WHOLE)["notes"]["ended"]


def drop_torn(folder: Path) -> None:
    """Delete checkpoints that have no seal or do not match it, and name them on stderr.

    Also delete those from which a run cannot resume, because their best checkpoint is gone. A best that a
    later one replaced is no loss: training reaches the later one again.
    """
    found = checkpoints(folder) if is_main() else []
    lost, best = set(), {}
    for path in found:
        try:
            unseal(path / WHOLE, name_of(path))
            named = json.loads((path / STATE).read_text())["best_model_checkpoint"]
            best[path] = path.with_name(Path(named).name) if named else path
        except ValueError as error:
            lost.add(path)
            leave_out(path, str(error))
    for path in [*best]:
        if best[path] in best or (path != found[0] and best[path] not in lost):
            break
        lost.add(best.pop(path))
        leave_out(path, "the best until then is gone")


def leave_out(path: Path, why: str) -> None:
    print(f"cfsp: {path} is left out ({why})", file=sys.stderr)
    shutil.rmtree(path)


def name_of(path: Path) -> str:
    """Return the name that a file is sealed with: its run, which is its folder, and its place there."""
    return f"{path.parent.name}/{path.name}"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the last one first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def keep_block(block: nn.Module, notes: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Store the weights of a tuned block, with notes on its tuning."""
    with replacing(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in block.state_dict().items()}, part)
    seal(file.with_suffix(".json"), name_of(file), [file], tuned=list(notes))


def restore_block(block: nn.Module, file: Path) -> list[dict[str, Any]] | None:
    """Load the weights that `keep_block` stored. -> the notes; None if there are none or they were altered"""
    if not file.exists():
        return None
    try:
        notes = unseal(file.with_suffix(".json"), name_of(file))
    except ValueError as error:
        print(f"cfsp: {file} is made again ({error})", file=sys.stderr)
        return None
    block.load_state_dict(load_file(file))
    return notes["tuned"]
