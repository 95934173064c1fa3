"""Measure the cost of greedy OBS with least squares: a random Llama of 1.3 B parameters in bfloat16, CPU.

    python experiments/benchmarks/least_squares.py > results/tables/least_squares_cost.md

Block by block, 32,768 calibration tokens, 20 % of MLP and attention. Operations are counted by formula, a
multiplication and its addition as two; the peak is of resident memory, the model included.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch
from surgery import CONFIG
from transformers import AutoModelForCausalLM

import cfsp
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.passes.walk import Walk
from cfsp.statistics import regression
from cfsp.statistics.moments import SecondMoment

SAMPLES, LENGTH, BATCH = 32, 1024, 4
TOKENS = SAMPLES * LENGTH
SPARSITY = 0.2
seconds: dict[str, list[float]] = defaultdict(list)


def timed(name: str, work: Callable) -> Callable:
    """Return the function with its seconds recorded."""

    @functools.wraps(work)
    def run(*args, **kwargs):
        start = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds[name].append(time.perf_counter() - start)

    return run


def operations() -> dict[str, float]:
    """Return the operations of one block: MLP and attention."""
    hidden, width, heads = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_attention_heads * 64
    groups = CONFIG.num_key_value_heads * 64
    weights = 3 * hidden * width + 2 * hidden * heads + 2 * hidden * groups
    sizes = (width, heads)
    kept = [round((1 - SPARSITY) * size) for size in sizes]
    return {
        "one pass": 2 * weights * TOKENS + 4 * TOKENS * LENGTH / 2 * heads,
        "moments": sum(size**2 * TOKENS for size in sizes),  # half of the products: they are symmetric
        "factorisation": sum(size**3 / 3 + 2 * size**3 / 3 for size in sizes),
        "selection": sum(2 / 3 * size**3 + size**2 * hidden for size in sizes),
        "targets": sum(2 * size**2 * hidden for size in sizes),
        "refit": sum(size**3 / 3 + 2 * size**2 * hidden for size in kept),
    }


def main() -> None:
    torch.manual_seed(0)
    reset_peak("cpu")
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    ids = torch.randint(CONFIG.vocab_size, (SAMPLES, LENGTH))
    batches = [{"input_ids": part} for part in ids.split(BATCH)]
    parts = {"criterion": "obs", "compensation": "least_squares", "schedule": "blockwise"}
    parts |= {"allocator": "uniform", "kinds": ["mlp", "attention"], "sparsity": SPARSITY}
    start = time.perf_counter()
    with (
        mock.patch.object(Walk, "advance", timed("one pass", Walk.advance)),
        mock.patch.object(SecondMoment, "add", timed("moments", SecondMoment.add)),
        mock.patch("torch.cholesky_inverse", timed("factorisation", torch.cholesky_inverse)),
        mock.patch("cfsp.criteria.obs.cholesky", timed("factorisation", regression.cholesky)),
        mock.patch("cfsp.criteria.obs.removal_path", timed("selection", regression.removal_path)),
        mock.patch("cfsp.compensation.least_squares.own_output", timed("targets", regression.own_output)),
        mock.patch("cfsp.compensation.least_squares.refit", timed("refit", regression.refit)),
    ):
        plan = cfsp.plan(model, batches, **parts)
    planned = time.perf_counter() - start
    cfsp.apply(plan, model)
    whole = time.perf_counter() - start
    peak = peak_bytes(torch.device("cpu"))["host"]
    blocks = CONFIG.num_hidden_layers
    print(f"# Greedy OBS and least squares on a Llama in bfloat16, CPU, {torch.get_num_threads()} threads\n")
    print("`python experiments/benchmarks/least_squares.py`: 1,327,347,712 random parameters, 27 blocks,")
    print(f"{TOKENS:,} calibration tokens, 20 % of MLPs (5,504 neurons) and attention; one run.\n")
    print(f"**{planned / 60:.1f} minutes** for the plan, {whole - planned:.0f} s for surgery; ")
    print(f"peak memory **{peak / 2**30:.1f} GiB**, of which the model is 2.5.\n")
    print("| of a block | seconds | operations | of these a second |\n|---|---|---|---|")
    counts = {name: len(times) / blocks for name, times in seconds.items()}
    for name, count in operations().items():
        spent = median(seconds[name]) if name == "one pass" else sum(seconds[name]) / blocks
        print(f"| {name} | {spent:.1f} | {count:.2e} | {count / spent:.2e} |")
    assert counts["selection"] == 2, "every block has two sites"


if __name__ == "__main__":
    main()
