"""The harness without what it says besides errors: warnings, progress bars, and git's complaint."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from lm_eval import evaluator
from lm_eval.api import model, task


def items_alone(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Return the items, in the place of a progress bar."""
    return items


def nothing(*_: Any) -> None:
    """Do nothing, in the place of what describes the machine by way of other programs."""


SPEAKING = (
    (task, "tqdm", items_alone),
    (model, "tqdm", items_alone),
    (evaluator, "get_git_commit_hash", nothing),
    (evaluator, "add_env_info", nothing),
)
"""Module, name in it, and what takes its place. The harness has no options for them."""


@contextmanager
def without_noise() -> Iterator[None]:
    """Let the harness report errors only, inside the block."""
    logger, there = logging.getLogger("lm_eval"), [one for one in SPEAKING if hasattr(one[0], one[1])]
    level, held = logger.level, [getattr(module, name) for module, name, _ in there]
    shown = not datasets.are_progress_bars_disabled()
    try:
        logger.setLevel(logging.ERROR)
        for module, name, other in there:
            setattr(module, name, other)
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        yield
    finally:
        logger.setLevel(level)
        for (module, name, _), before in zip(there, held, strict=True):
            setattr(module, name, before)
        if shown:
            datasets.enable_progress_bars()
