"""Measure what LHSPG adds to a step of LoRA: a small Llama, plain and while units shrink, in turns.

    python experiments/benchmarks/lhspg_cost.py [--rounds 15] [--sparsity 0.5] [--periods 5]
        [--dtype bfloat16] [--device cuda] [--markdown FILE]

A step is a forward and a backward pass and AdamW on one batch of 4 texts of 128 tokens, with adapters of rank
8 on all linear layers. The rounds lie inside the first period, in which 1 / periods of the units to go
shrink. The figure is the median of the ratios of the rounds, with their range. The bytes are those of
weights, adapters, optimizer and pruner between steps, and on a GPU the most that a step had allocated, too.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import cfsp
from cfsp.allocators.uniform import Uniform
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.training.base import Change
from cfsp.training.lhspg import LHSPG
from cfsp.training.lora import Lora


class Side:
    """A model in training. sparsity: None trains adapters alone."""

    def __init__(self, sparsity: float | None, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        rounds, self.device, self.periods = options.rounds, options.device, options.periods
        config = LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            vocab_size=4096,
        )
        self.model = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype)).train()
        self.pruning = None if sparsity is None else self.pruner(sparsity)
        self.module, _ = Lora(rank=8, alpha=16, dropout=0.05).attach(
            self.model, Change((*range(6),), (0.0,) * 6, None)
        )
        trained = [one for one in self.module.parameters() if one.requires_grad]
        self.optimizer, self.done = torch.optim.AdamW(trained, lr=1e-4), 0
        self.ids = torch.randint(4096, (4, 128)).to(self.device)
        if self.pruning is not None:
            self.pruning.join(self.module)
            self.pruning.steer(self.optimizer)
            self.pruning.begin((self.periods + 1) * (rounds + 9))

    def pruner(self, sparsity: float):
        sites = cfsp.find_sites(self.model, ["mlp", "attention"])
        state = PartlyCut(self.model, sites)
        removed = round(sparsity * sum(site.units * state.cost(site) for site in sites))

        def decide(scores):
            stats = {site.name: {} for site in sites}
            return choose(sites, scores, allocate(state, sites, scores, stats, Uniform(), removed), Uniform())

        pruner = LHSPG(periods=self.periods, warmup=0.4 / (self.periods + 1))
        return pruner.attach(self.model, sites, sparsity, decide)

    def step(self) -> float:
        """Make one step. -> its seconds"""
        start = time.perf_counter()
        self.module(input_ids=self.ids, labels=self.ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        if self.pruning is not None:
            self.pruning.after_step(self.done)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def bytes(self) -> int:
        """Return the bytes of what training holds between steps."""
        held = [*self.module.parameters()]
        held += [value for state in self.optimizer.state.values() for value in state.values()]
        if self.pruning is not None:
            held += [
                one for now in self.pruning.now.values() for one in (now.shrink, *now.rest) if one is not None
            ]
        return sum(one.numel() * one.element_size() for one in held)


def peak(plain: Side, shrinking: Side) -> str:
    """Return how many times the bytes of a plain step a step of LHSPG adds at most to what both hold."""
    most = []
    for side in (plain, shrinking):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side.step()
        most.append(side.bytes() + torch.cuda.max_memory_allocated() - before)
    return f", and at the peak of a step {most[1] / most[0]:.2f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--periods", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    plain, shrinking = Side(None, options), Side(options.sparsity, options)
    pruning = shrinking.pruning
    while pruning.period < 0:  # the warm-up, and what both need to run at full speed
        plain.step()
        shrinking.step()
    ratios = []
    for number in range(options.rounds):
        both = (plain, shrinking) if number % 2 else (shrinking, plain)
        seconds = {id(side): side.step() for side in both}
        ratios.append(seconds[id(shrinking)] / seconds[id(plain)])
    assert pruning.period == 0, "the rounds lie inside one period"
    middle, spread = median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
    where = f"{len(ratios)} rounds in turns, {platform.machine()}, {torch.get_num_threads()} threads"
    if options.device == "cuda":
        where = f"{len(ratios)} rounds in turns, {torch.cuda.get_device_name()}"
    most = peak(plain, shrinking) if options.device == "cuda" else ""
    report = (
        f"{options.dtype}, {options.periods} periods: a step of LHSPG at {options.sparsity:.0%} costs "
        f"{middle:.2f} steps of plain LoRA (range {spread}, {where}); between steps it holds "
        f"{shrinking.bytes() / plain.bytes():.2f} times the bytes{most}.\n"
    )
    print(report)
    if options.markdown:
        options.markdown.write_text(report)


if __name__ == "__main__":
    main()
