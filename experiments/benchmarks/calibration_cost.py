"""Measure the cost of collecting CFSP's statistics, against a bare forward pass over the same batches.

    python experiments/benchmarks/calibration_cost.py [--device cuda] [--markdown FILE]

Time: interleaved pairs in one process, each kind first in every other pair; median of the ratios and
their spread. Memory: one fresh process per kind and repetition; the peak of the resident memory (CPU,
Linux) or of the allocated memory (CUDA) while the batches run, above what it was before them.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cfsp import collect, find_sites

NEEDS = {"input_sq_mean", "block_angular"}
PAIRS = 12
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
)


def make(device: str) -> tuple[LlamaForCausalLM, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval().to(device)
    ids = torch.randint(0, CONFIG.vocab_size, (4, 2, 512))
    return model, [{"input_ids": chunk, "attention_mask": torch.ones_like(chunk)} for chunk in ids]


@torch.no_grad()
def bare(model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> None:
    """Run what `collect` runs without statistics: the model without its head."""
    for batch in batches:
        model.model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False)


def collecting(model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> None:
    collect(model, find_sites(model), batches, NEEDS)


KINDS: dict[str, Callable] = {"bare": bare, "collecting": collecting}


def seconds(work: Callable, model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(model, batches)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak since the last reset) of this process, in bytes."""
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field)]
    return int(line.split()[1]) * 1024


def growth(kind: str, device: str) -> int:
    """Return by how many bytes the peak grows while batches run. Call it once per process."""
    model, batches = make(device)
    KINDS[kind](model, [{name: value[:1, :8] for name, value in batches[0].items()}])  # loads libraries
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        KINDS[kind](model, batches)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the model
    before = resident("VmRSS")
    KINDS[kind](model, batches)
    return resident("VmHWM") - before


def growth_in_a_fresh_process(kind: str, device: str) -> int:
    command = [sys.executable, __file__, "--device", device, "--growth", kind]
    # Map each tensor separately and unmap it at once, so that resident memory is what is in use.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | exact)
    return int(done.stdout)


def report(device: str) -> str:
    model, batches = make(device)
    for work in KINDS.values():
        work(model, batches[:1])  # warm-up
    pairs = []
    for number in range(PAIRS):  # each kind is first in every other pair
        order = list(KINDS) if number % 2 else list(reversed(KINDS))
        times = {kind: seconds(KINDS[kind], model, batches) for kind in order}
        pairs.append([times[kind] for kind in KINDS])
    ratios = sorted(with_statistics / without for without, with_statistics in pairs)
    memory = {
        kind: statistics.median(growth_in_a_fresh_process(kind, device) for _ in range(3)) for kind in KINDS
    }
    tokens = batches[0]["input_ids"].numel()
    activation = tokens * CONFIG.intermediate_size * 4
    where = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} CPU threads"
    median = [statistics.median(column) for column in zip(*pairs, strict=True)]
    mib = {kind: size / 2**20 for kind, size in memory.items()}
    return f"""# What calibration costs

`python experiments/benchmarks/calibration_cost.py{"" if device == "cpu" else f" --device {device}"}`

Random Llama of {model.num_parameters() / 1e6:.0f} M parameters, float32; {len(batches)} batches of
{tokens} tokens, {PAIRS} interleaved pairs; torch {torch.__version__}, {platform.machine()}, {where}.

| | bare forward pass | with CFSP's statistics |
|---|---|---|
| seconds, median | {median[0]:.3f} | {median[1]:.3f} |
| growth of the peak memory, MiB | {mib["bare"]:.1f} | {mib["collecting"]:.1f} |

Ratio of the times: median **{statistics.median(ratios):.3f}**, from {ratios[0]:.3f} to {ratios[-1]:.3f}.
Memory above the bare pass: **{mib["collecting"] - mib["bare"]:.1f} MiB**; the MLP activation of one batch
in one block is {activation / 2**20:.1f} MiB.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    parser.add_argument("--growth", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth:
        print(growth(options.growth, options.device))
        return
    text = report(options.device)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
