"""Kept plans: a plan is stored while the training that follows runs, so that it can be resumed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from cfsp.machine.environment import is_main
from cfsp.plans.plan import PrunePlan
from cfsp.storage.seals import seal, unseal

MADE_FROM = "made_from.json"


def begin_plan(folder: Path, made_from: str) -> None:
    """Store what a plan will be made from, before a schedule that trains writes checkpoints there."""
    if is_main() and not (folder / MADE_FROM).exists():
        folder.mkdir(parents=True, exist_ok=True)
        seal(folder / MADE_FROM, made_from, [])


def keep_plan(folder: Path, plan: PrunePlan, made_from: str) -> None:
    """Store a plan in case the training that follows is killed. made_from: hash of its inputs."""
    plan.save(folder)
    seal(folder / MADE_FROM, made_from, folder.glob("plan.*"))


def kept_plan(folder: Path, made_from: str) -> PrunePlan | None:
    """Load the plan of an interrupted training; None if there is none, or none yet.

    If the plan was made from something else or was altered, delete it and the training's checkpoints.
    """
    if not folder.exists():
        return None
    try:
        unseal(folder / MADE_FROM, made_from)
        plan = PrunePlan.load(folder) if any(folder.glob("plan.*")) else None
    except ValueError as error:
        if is_main():
            print(f"cfsp: the training in {folder} begins anew ({error})", file=sys.stderr)
            shutil.rmtree(folder)
        return None
    if is_main():
        print(f"cfsp: going on with the training in {folder}; delete it to begin anew", file=sys.stderr)
    return plan
