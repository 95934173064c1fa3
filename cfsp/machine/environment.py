"""Environment."""

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
    """Whether this is the process of several (torchrun, accelerate launch) that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether cfsp/ or conf/ differ; else None."""

    def git(*command: str) -> str:
        folder = PACKAGE
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):  # an installed package inside some other tree
            return None
        # Code and configs, untracked ones too; the records of a sweep are changes that do not count.
        changes = git("status", "--porcelain", "--", ":/cfsp", ":/conf")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and threads."""
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
