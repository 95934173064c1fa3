"""Structured pruning of language models, configured by Hydra."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # the steps of a run
    "load": "cfsp.loading",
    "find_sites": "cfsp.finding",
    "collect": "cfsp.collection",
    "plan": "cfsp.api",
    "apply": "cfsp.api",
    "save": "cfsp.api",
    # what they take and give
    "RandomWindows": "cfsp.calibration",
    "Text": "cfsp.texts",
    "Stdlib": "cfsp.texts",
    "Files": "cfsp.texts",
    "Hub": "cfsp.texts",
    "Site": "cfsp.sites",
    "UnitView": "cfsp.sites",
    "PrunePlan": "cfsp.plans",
    "Cut": "cfsp.plans",
    "Record": "cfsp.record",
    "Metric": "cfsp.record",
    "frame": "cfsp.tables",
    "compare": "cfsp.tables",
    # what one adds to
    "Criterion": "cfsp.criteria.base",
    "Statistic": "cfsp.statistics",
    "InputStatistic": "cfsp.statistics",
    "STATISTICS": "cfsp.collection",  # with those of all modules that define some
    "Allocator": "cfsp.allocators.base",
    "Compensation": "cfsp.compensation.base",
    "Schedule": "cfsp.schedules.base",
    "Recovery": "cfsp.recovery.base",
    "Setting": "cfsp.recovery.base",
    "Recovered": "cfsp.recovery.base",
    "Evaluator": "cfsp.evaluation.base",
    "Logger": "cfsp.loggers.base",
    "Layout": "cfsp.layouts",
    "Place": "cfsp.layouts",
    "LAYOUTS": "cfsp.layouts",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `cfsp --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfsp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
