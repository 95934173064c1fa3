"""Heads: the labels that a task gives a classifier, a head that a checkpoint lacks, another activation."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

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


ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
"""What families call their MLPs' activation in the config."""


def activation_options(path: str | Path, activation: str | None, revision: str | None) -> dict[str, str]:
    """Return what a config says about the MLPs' activation. None: it stays.

    Another one, such as relu, needs training: MoEfication and Deja Vu begin with models of ReLU
    (arXiv:2310.04564). Raises ValueError if there is no such activation, or no place for it.
    """
    if activation is None:
        return {}
    if activation not in ACT2FN:
        known = ", ".join(sorted(ACT2FN))
        raise ValueError(f"model.activation={activation!r}: expected one of {known}")
    config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    found = {key: activation for key in ACTIVATION_KEYS if config.get(key) is not None}
    if not found:
        raise ValueError(
            f"model path {str(path)!r}: its config names no activation; expected model.activation=null"
        )
    return found


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
