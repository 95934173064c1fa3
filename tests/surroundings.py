"""A picture of all that a process shares with the code that runs in it."""

import logging
import os
import random
import signal
import sys
import warnings

import numpy as np
import torch


def picture() -> dict[str, object]:
    """Name -> a value that can be compared; of modules that are imported alone."""
    found = {
        "random": random.getstate(),
        "numpy.random": str(np.random.get_state()),
        "torch.random": torch.get_rng_state().tolist(),
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": umask(),
        "recursion limit": sys.getrecursionlimit(),
        "excepthook": sys.excepthook,
        "stdout, stderr": (sys.stdout, sys.stderr),
        "sys.path": [*sys.path],
        "warnings": [*warnings.filters],
        "showwarning": warnings.showwarning,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
    }
    found |= {f"torch.{name}": value for name, value in torch_settings().items()}
    found |= {f"logging {name}": value for name, value in loggers().items()}
    return found | libraries()


def umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def torch_settings() -> dict[str, object]:
    backends, cudnn = torch.backends, torch.backends.cudnn
    kinds = (backends, backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn, backends.mkldnn)
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": [kind.fp32_precision for kind in kinds],
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "autocast": torch.is_autocast_enabled("cpu"),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
    }


def loggers() -> dict[str, object]:
    named = {"root": logging.getLogger(), **logging.root.manager.loggerDict}
    return {
        name: (one.level, [*one.handlers], one.propagate, one.disabled, [*one.filters])
        for name, one in named.items()
        if isinstance(one, logging.Logger)
    } | {"": (logging.root.manager.disable, logging.raiseExceptions)}


def libraries() -> dict[str, object]:
    found = {}
    if "transformers" in sys.modules:
        from transformers.utils import logging as bars

        found["transformers bars"] = bars.is_progress_bar_enabled()
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import are_progress_bars_disabled

        found["hub bars"] = are_progress_bars_disabled()
    if "datasets" in sys.modules:
        import datasets

        found["datasets"] = (datasets.are_progress_bars_disabled(), datasets.is_caching_enabled())
    if "matplotlib" in sys.modules:
        import matplotlib

        found["matplotlib"] = (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False))
    if "pandas" in sys.modules:
        import pandas

        found["pandas"] = [
            pandas.get_option(f"display.{name}") for name in ("width", "precision", "max_rows")
        ]
    if "wandb" in sys.modules:
        found["wandb"] = sys.modules["wandb"].run
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for kind in (AcceleratorState, GradientState, PartialState):
            found[kind.__name__] = {name: str(value) for name, value in kind._shared_state.items()}
    return found


def changes(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[object, object]]:
    """What was there before and is otherwise now."""
    return {name: (value, after[name]) for name, value in before.items() if after[name] != value}
