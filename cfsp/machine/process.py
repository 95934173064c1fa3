"""Process: save and restore the global state that a run shares with its caller."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Filter, LogRecord, getLogger
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

GLOBAL_SIZES = getLogger("transformers.integrations.heterogeneity.configuration_utils")
"""The logger that warns when a global size is read."""

REPORTS = getLogger("transformers.modeling_utils")
"""The logger that reports the weights that a checkpoint lacks."""

SHARED = (AcceleratorState, GradientState, PartialState)
"""Global state of accelerate. transformers' Trainer clears it and fills it again."""

ATTRIBUTES = (
    (sys, "excepthook"),
    (sys, "exit"),
    (torch.backends, "fp32_precision"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
)


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restore random generators, settings, warnings and the environment when the block ends.

    Peaks of memory cannot be restored: a run resets them.
    """
    random_states = generators()
    with environment_kept(), warnings.catch_warnings(), settings_kept(), quiet():
        try:
            yield
        finally:
            for give_back, state in random_states:
                give_back(state)


@contextmanager
def environment_kept(**changes: str) -> Iterator[None]:
    """Set environment variables for the block, then restore the whole environment."""
    held = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(held)


def generators() -> list[tuple[Callable[[Any], None], Any]]:
    """Return, for each random generator, the function that restores its state and the state."""
    states = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():  # reading it would initialise CUDA, and the caller could no longer fork
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return states


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore settings of torch and accelerate, and the interpreter's hooks, when the block ends."""
    held = [(owner, name, getattr(owner, name)) for owner, name in ATTRIBUTES]
    mode, device = torch.get_deterministic_debug_mode(), current_gpu()
    shared = [dict(kind._shared_state) for kind in SHARED]
    try:
        yield
    finally:
        for owner, name, value in held:
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        torch.set_deterministic_debug_mode(mode)
        if device is not None:
            torch.cuda.set_device(device)
        for kind, state in zip(SHARED, shared, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)


def current_gpu() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


class Expected(Filter):
    """Drops the warning of transformers about reading a global size beside `per_layer_config`.

    Its own checks of a config read every attribute; our models read each block's sizes from that block.
    """

    def filter(self, record: LogRecord) -> bool:
        return "on a heterogeneous config" not in record.getMessage()


def is_no_report(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


@contextmanager
def quiet(reports: bool = True) -> Iterator[None]:
    """Hide expected warnings of loading and saving, and, outside a terminal, progress bars.

    Both settings are restored when the block ends. reports: show transformers' reports of weights that a
        checkpoint lacks; False: the caller reports them.
    """
    expected = Expected()
    GLOBAL_SIZES.addFilter(expected)
    if not reports:
        REPORTS.addFilter(is_no_report)
    shown, hidden_by_hub = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        GLOBAL_SIZES.removeFilter(expected)
        REPORTS.removeFilter(is_no_report)
        if shown:
            logging.enable_progress_bar()
        (disable_progress_bars if hidden_by_hub else enable_progress_bars)()
