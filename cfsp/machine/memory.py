"""Memory."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch


def physical_memory() -> float:
    """Bytes of RAM; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return math.inf


def reset_peak(device: str) -> None:
    """Begin a new measurement of `peak_bytes`, where the system lets a process do so."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # no Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Peak memory since `reset_peak`: resident, and allocated on the GPU if there is one."""
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
