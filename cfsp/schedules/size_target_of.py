"""The size target that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfsp.records.wanted import target_of
from cfsp.schedules.latency_target import LatencyTarget
from cfsp.schedules.size_targets import MacTarget, MemoryTarget, ParameterTarget, SizeTarget

SIZE_TARGETS: Mapping[str, type[SizeTarget]] = {
    "parameters": ParameterTarget,
    "memory": MemoryTarget,
    "macs": MacTarget,
    "latency": LatencyTarget,
}


def size_target_of(options: Mapping[str, Any] | None) -> SizeTarget | None:
    """Return the target that a config's `target` names; None if it names none. Raises ValueError."""
    wanted = target_of(options)
    return None if wanted is None else SIZE_TARGETS[wanted.kind](wanted)
