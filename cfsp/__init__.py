"""Structured pruning of language models, configured by Hydra."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "cfsp.loading",
    "find_sites": "cfsp.finding",
    "collect": "cfsp.collection",
    "plan": "cfsp.api",
    "apply": "cfsp.api",
    "save": "cfsp.api",
    "PrunePlan": "cfsp.plans",
    "Cut": "cfsp.plans",
    "Record": "cfsp.record",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `cfsp --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfsp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
