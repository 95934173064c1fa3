"""Heads: the labels that a task gives a classifier, and a head that a checkpoint lacks."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from cfsp.machine.environment import is_main


def label_options(path: str | Path, labels: Sequence[str] | None, revision: str | None) -> dict[str, Any]:
    """Return what a config says about labels. Raises ValueError if the checkpoint's labels contradict them.

    The checkpoint's labels may be placeholders (LABEL_0), or those of another task with another head.
    """
    if labels is None:
        return {}
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    named = sorted((config.get("id2label") or {}).items(), key=lambda pair: int(pair[0]))
    there = [str(name) for _, name in named]
    known = bool(there) and not all(name.startswith("LABEL_") for name in there)
    ours, theirs = ([str(name).casefold() for name in names] for names in (labels, there))
    if known and ours != theirs and ({*ours} == {*theirs} or len(ours) != len(theirs)):
        raise ValueError(
            f"model path {str(path)!r} is a classifier of {', '.join(there)}, in this order; "
            f"expected task.labels so, not {', '.join(labels)}, or a checkpoint without that head"
        )
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }


MANY = 4
"""Names of missing weights that a message lists."""


def check_head(path: str | Path, missing: Collection[str], trained: bool | None) -> None:
    """Name the missing weights of a head on stderr. Raises ValueError if they would stay random.

    trained: whether they will be trained; None: they may stay random.
    """
    if not missing or trained is None:
        return
    first = sorted(missing)[:MANY]
    names = ", ".join(first) + (f" and {len(missing) - MANY} more" if len(missing) > MANY else "")
    if not trained:
        raise ValueError(
            f"model path {str(path)!r} lacks {names}, and nothing here would learn them from labels (nothing "
            "trains, or it imitates the dense model); expected a checkpoint with this head, which sparsity=0 "
            "recovery=full save=FOLDER makes"
        )
    if is_main():
        print(f"cfsp: newly initialised: {names}", file=sys.stderr)
