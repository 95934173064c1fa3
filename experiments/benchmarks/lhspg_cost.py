"""Measure what LHSPG adds to a step of LoRA: a small Llama, plain and while units shrink, in turns.

    python experiments/benchmarks/lhspg_cost.py [--rounds 15] [--sparsity 0.5] [--markdown FILE]

A step is a forward and a backward pass and AdamW on one batch of 4 texts of 128 tokens, with adapters of rank
8 on all linear layers. The rounds lie inside one period, in which a fourth of the units to go shrink. The
figure is the median of the ratios of the rounds, with their range. The bytes are those of weights, adapters,
optimizer and pruner between steps.
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

    def __init__(self, sparsity: float | None, rounds: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=6,
            num_attention_heads=8,
            vocab_size=4096,
        )
        self.model = LlamaForCausalLM(config).train()
        self.pruning = None if sparsity is None else self.pruner(sparsity)
        self.module, _ = Lora(rank=8, alpha=16, dropout=0.05).attach(
            self.model, Change((*range(6),), (0.0,) * 6, None)
        )
        trained = [one for one in self.module.parameters() if one.requires_grad]
        self.optimizer, self.done = torch.optim.AdamW(trained, lr=1e-4), 0
        self.ids = torch.randint(4096, (4, 128))
        if self.pruning is not None:
            self.pruning.join(self.module)
            self.pruning.steer(self.optimizer)
            self.pruning.begin(5 * (rounds + 9))

    def pruner(self, sparsity: float):
        sites = cfsp.find_sites(self.model, ["mlp", "attention"])
        state = PartlyCut(self.model, sites)
        removed = round(sparsity * sum(site.units * state.cost(site) for site in sites))

        def decide(scores):
            stats = {site.name: {} for site in sites}
            return choose(sites, scores, allocate(state, sites, scores, stats, Uniform(), removed), Uniform())

        pruner = LHSPG(periods=4, warmup=0.2 * 2 / 5)
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
        return time.perf_counter() - start

    def bytes(self) -> int:
        """Return the bytes of what training holds between steps."""
        held = [*self.module.parameters()]
        held += [value for state in self.optimizer.state.values() for value in state.values()]
        if self.pruning is not None:
            held += [*self.pruning.state().values()]
        return sum(one.numel() * one.element_size() for one in held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    plain, shrinking = Side(None, options.rounds), Side(options.sparsity, options.rounds)
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
    report = (
        f"A step of LHSPG at {options.sparsity:.0%} costs {middle:.2f} steps of plain LoRA (range {spread}, "
        f"{where}); between steps it holds {shrinking.bytes() / plain.bytes():.2f} times the bytes.\n"
    )
    print(report)
    if options.markdown:
        options.markdown.write_text(report)


if __name__ == "__main__":
    main()
