"""Plain: a config as dictionaries and lists."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


def plain(
    config: DictConfig | ListConfig, resolve: bool = False, throw_on_missing: bool = False
) -> dict[str, Any]:
    """The config without OmegaConf's classes.

    resolve: put in what interpolations stand for. throw_on_missing: accept no `???`.

    Raises ValueError if it is no mapping, omegaconf's own errors for what cannot be resolved.
    """
    found = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=throw_on_missing)
    if not isinstance(found, dict):
        raise ValueError(f"a config of {type(found).__name__}; expected a mapping of names to values")
    return {str(key): value for key, value in found.items()}
