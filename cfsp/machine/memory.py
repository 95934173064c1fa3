"""Memory: RAM of this machine, and what this process uses of it and of the GPU."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch


def physical_memory() -> float:
    """Return the bytes of RAM; infinity if the system does not report them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf


def reset_peak(device: str) -> None:
    """Start a new measurement of `peak_bytes`, if the system allows it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not Linux, or not allowed: the peak then covers the whole process
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> int:
    """Return the bytes of this process that are in RAM now; 0 if the system does not report them."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Return the peak memory since `reset_peak`: resident, and allocated on the GPU if there is one."""
    if Path("/proc/self/status").is_file():
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = {"host": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))}
    else:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
