"""Measure the cost of surgery alone: a Llama of 1.3 B random parameters in bfloat16, on the CPU.

    python experiments/benchmarks/surgery.py > results/tables/surgery.md

Peaks are of resident memory, over what the process held before the model was made.
"""

from __future__ import annotations

import ctypes
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cfsp import Cut, PrunePlan, find_sites
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.plans.choose import best_units
from cfsp.plans.surgery import apply

RUNS = 3
KINDS = {
    "MLP neurons and heads": (["mlp", "attention"], 0.8),
    "the same, with a bias for what is gone": (["mlp", "attention"], 0.8),
    "all kinds at once": (["mlp", "attention", "query_heads", "block", "hidden"], 0.8),
}
CONFIG = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5504,
    num_hidden_layers=27,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=32000,
)


def make_model() -> LlamaForCausalLM:
    """Return a model with random weights, faster than a proper initialisation."""
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    return model


def make_plan(sites, share: float, fill: bool) -> PrunePlan:
    """Keep this fraction of every site, chosen at random."""
    cuts = []
    for site in sites:
        count = max(round(share * site.units / site.groups), 1) * site.groups
        constant = torch.ones(site.units * site.span) if fill else None
        cuts.append(
            Cut(site.name, site.units, best_units(torch.rand(site.units), count, site.groups), constant)
        )
    return PrunePlan(tuple(cuts))


def resident() -> int:
    reset_peak("cpu")
    return peak_bytes(torch.device("cpu"))["host"]


def measure(kinds: list[str], share: float, fill: bool) -> tuple[float, float, int, int]:
    """Return seconds, peak over the model's size, and parameters before and after one surgery."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident()
    model = make_model()
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    dense = model.num_parameters()
    sites = find_sites(model, kinds)
    plan = make_plan(sites, share, fill)
    reset_peak("cpu")
    start = time.perf_counter()
    apply(plan, sites, model)
    seconds = time.perf_counter() - start
    peak = peak_bytes(torch.device("cpu"))["host"] - before
    return seconds, peak / size, dense, model.num_parameters()


def main() -> None:
    ctypes.CDLL("libc.so.6").mallopt(
        -3, 1 << 16
    )  # M_MMAP_THRESHOLD: free tensors return to the system at once
    torch.manual_seed(0)
    print(f"# Surgery on a Llama in bfloat16, CPU, {torch.get_num_threads()} threads\n")
    print("`python experiments/benchmarks/surgery.py`; 20 % of every site, three runs each.\n")
    print("| what | parameters | seconds, median (range) | peak memory / model, most |")
    print("|---|---|---|---|")
    for name, (kinds, share) in KINDS.items():
        runs = [measure(kinds, share, "bias" in name) for _ in range(RUNS)]
        seconds = [run[0] for run in runs]
        sizes = f"{runs[0][2]:,} → {runs[0][3]:,}"
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"| {name} | {sizes} | {spread} | {max(run[1] for run in runs):.3f} |", flush=True)


if __name__ == "__main__":
    main()
