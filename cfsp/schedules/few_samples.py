"""Few samples: refuse a fit to too few calibration samples before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from cfsp.schedules.method import Method
from cfsp.schedules.probes import count_measured


def check_samples(sizes: Sequence[int], method: Method, walks: bool) -> None:
    """Raise ValueError if there is nothing to measure, or too few samples to fit the compensation to.

    Error curves are measured on the first batches, with fits to the others. A joint search that cuts block by
    block fits to the first ones.

    sizes: samples of each calibration batch. walks: whether the schedule goes from block to block.
    """
    probes, fits = method.allocator.probes, [sizes]
    if probes is not None and not sizes:
        raise ValueError(
            f"allocator {type(method.allocator).__name__} measures errors on calibration batches and there "
            "are 0; expected at least 1"
        )
    if probes is not None:
        fits.append(sizes[count_measured(len(sizes), method, probes.batches) :] or sizes)
        if walks and method.allocator.exchanges:
            fits.append(sizes[: probes.batches])
    method.compensation.check_samples(min(map(sum, fits)), sum(sizes))
