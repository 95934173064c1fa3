"""Early: what can be said of a run before seconds go to importing torch, or a minute to asking the hub."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cfsp.bars import speak
from cfsp.records.wanted import target_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
OURS = "cfsp.checkpoints.load.load"
"""The function whose `path` is a folder or a hub id; one of the user's own may take anything."""


def check_early(cfg: DictConfig) -> None:
    """Check a run's share or target and its model's path, and print if the model must come from the hub.

    Raises:
        ValueError: the share is not in [0, 1), the target cannot be read, or there is no such folder and no
            hub id looks like it.
    """
    share = OmegaConf.select(cfg, "sparsity")
    if isinstance(share, int | float) and not isinstance(share, bool) and not 0 <= share < 1:
        raise ValueError(f"sparsity={share!r}: expected a share to remove, in [0, 1)")
    target_of(OmegaConf.select(cfg, "target"))
    path = OmegaConf.select(cfg, "model.path")
    if OmegaConf.select(cfg, "model._target_") != OURS or not isinstance(path, str):
        return
    is_file = path.lower().endswith(".gguf")
    if is_nowhere(path) and (is_file or not HUB_ID.fullmatch(path)):
        raise ValueError(
            f"model path {path!r} cannot be loaded: expected a folder or a GGUF file, of which there is "
            "none, or a hub id, such as owner/name"
        )
    if is_nowhere(path):
        speak(f"cfsp: {path}{from_hub(path)}")


def is_nowhere(path: str) -> bool:
    """Return whether a model's path is neither on this disk nor the embedded model."""
    return path != "reference" and not Path(path).exists()


def from_hub(path: str) -> str:
    """Return a remark on a model that has no folder here; nothing if it has one."""
    return ": there is no such folder here, so it is taken from the hub" if is_nowhere(path) else ""
