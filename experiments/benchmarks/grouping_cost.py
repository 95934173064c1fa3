"""Measure what it costs to group the neurons of one MLP into experts, at LLaMA-7B's size.

    python experiments/benchmarks/grouping_cost.py [--neurons 11008] [--inputs 4096] [--size 32]

The rows are random, without groups to find. Time is CPU seconds of this process, which a busy machine changes
less: set OMP_NUM_THREADS=1. Memory is the peak of the process above what it had with the rows.
"""

from __future__ import annotations

import argparse
import time

import torch

from cfsp.machine.memory import peak_bytes, reset_peak, resident_bytes
from cfsp.plans.grouping import order_of


def main() -> None:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--neurons", type=int, default=11008)
    found.add_argument("--inputs", type=int, default=4096)
    found.add_argument("--size", type=int, default=32)
    options = found.parse_args()
    torch.manual_seed(0)
    rows = torch.randn(options.neurons, options.inputs)
    print(f"{torch.get_num_threads()} threads, rows {rows.numel() * rows.element_size() / 2**20:.0f} MiB")
    reset_peak("cpu")
    before, start = resident_bytes(), time.process_time()
    order_of("kmeans", rows, options.size)
    seconds, peak = time.process_time() - start, peak_bytes(torch.device("cpu"))["host"] - before
    print(f"kmeans, experts of {options.size}: {seconds:.1f} CPU seconds, {peak / 2**20:.0f} MiB more")


if __name__ == "__main__":
    main()
