"""Environment: versions, device and git commit of a run, and which of several processes this is."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGE = Path(__file__).parent.parent
"""The folder of this package."""

PACKAGES = tuple(
    "cfsp torch transformers tokenizers datasets hydra-core numpy peft accelerate lm-eval wandb".split()
)


def is_main() -> bool:
    """Return whether this process writes files and prints: rank 0 of torchrun or accelerate launch."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """Return how many processes torchrun or accelerate launch has started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Return the checkout's commit and whether cfsp/ or conf/ differ from it; None without a checkout."""

    def git(*command: str) -> str:
        folder = PACKAGE
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):  # an installed package inside another repository
            return None
        # Only code and configs, untracked ones too: a sweep's records must not make it dirty.
        changes = git("status", "--porcelain", "--", ":/cfsp", ":/conf")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions of packages, the system, the device and the number of threads."""
    import torch  # here, so that `cfsp --help` needs none: it imports this module for `PACKAGE`

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
