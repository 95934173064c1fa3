"""Structured pruning of language models, configured by Hydra."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # the steps of a run
    "load": "cfsp.checkpoints.load",
    "find_sites": "cfsp.model.find_sites",
    "collect": "cfsp.statistics.collect",
    "plan": "cfsp.api",
    "apply": "cfsp.api",
    "save": "cfsp.api",
    # their arguments and results
    "RandomWindows": "cfsp.data.calibration",
    "Text": "cfsp.data.texts",
    "Stdlib": "cfsp.data.texts",
    "Files": "cfsp.data.texts",
    "Hub": "cfsp.data.texts",
    "Site": "cfsp.model.sites",
    "UnitView": "cfsp.model.views",
    "Shapes": "cfsp.model.shapes",
    "BlockShape": "cfsp.model.shapes",
    "PrunePlan": "cfsp.plans.plan",
    "Cut": "cfsp.plans.plan",
    "Record": "cfsp.records.record",
    "Metric": "cfsp.records.record",
    "frame": "cfsp.tables.compare",
    "compare": "cfsp.tables.compare",
    # base classes and tables to extend
    "Criterion": "cfsp.criteria.base",
    "Statistic": "cfsp.statistics.base",
    "InputStatistic": "cfsp.statistics.inputs",
    "STATISTICS": "cfsp.statistics.collect",  # importing it registers all statistics
    "Allocator": "cfsp.allocators.base",
    "Compensation": "cfsp.compensation.base",
    "Schedule": "cfsp.schedules.base",
    "Recovery": "cfsp.recovery.base",
    "Setting": "cfsp.training.base",
    "Recovered": "cfsp.recovery.base",
    "Evaluator": "cfsp.evaluation.base",
    "Exporter": "cfsp.exports.base",
    "FolderExporter": "cfsp.exports.base",
    "Saved": "cfsp.exports.base",
    "Logger": "cfsp.loggers.base",
    "Layout": "cfsp.model.families",
    "Place": "cfsp.model.families",
    "LAYOUTS": "cfsp.model.families",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]  # __init__.pyi has the names


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `cfsp --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cfsp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
