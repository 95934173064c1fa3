"""Measure what masks add to a step of fine-tuning: a BERT of MiniLM's size, plain and with gates, in turns.

    python experiments/benchmarks/mask_cost.py [--rounds 15] [--variant hybrid] [--tile 32] [--markdown FILE]

A step is a forward and a backward pass and AdamW on one batch of 32 texts of 32 tokens, with the same labels.
Neither side has a teacher, which would cost both the same. Scores begin spread around the threshold, because
a training of thousands of steps spreads them and these rounds could not. The figure is the median of the
ratios of the rounds, with their range; beside it is the time in which the masks are chosen, a part of it.
Times are CPU seconds of this process, which a busy machine changes less: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import cfsp
from cfsp.allocators.global_rank import GlobalRank
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.training.movement import Movement
from cfsp.training.pruner import Pruning

SHARE = 0.6
"""Of the heads' and neurons' parameters, to mask by the end."""


def encoder() -> BertForSequenceClassification:
    """Return a random BERT of MiniLM-L6's shape."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    ).train()


def stepper(
    model: BertForSequenceClassification, pruning: Pruning | None, rounds: int
) -> Callable[[int], float]:
    """Return a function that makes step number n of so many rounds, and says how long masks took."""
    scores = [{**one, "lr": 1e-2} for one in pruning.groups()] if pruning else []
    known = {id(one) for group in scores for one in group["params"]}
    weights = [one for one in model.parameters() if id(one) not in known]
    optimizer = torch.optim.AdamW([{"params": weights}, *scores], lr=1e-4)
    ids, labels = torch.randint(1000, (32, 32)), torch.randint(2, (32,))

    def step(number: int) -> float:
        start = time.process_time()
        if pruning:
            pruning.begin_step(0.2 + 0.39 * number / rounds)  # while masks close, the costly part
        chosen = time.process_time() - start
        loss = model(input_ids=ids, labels=labels).loss
        loss = loss + pruning.penalty() if pruning else loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return chosen

    return step


def masked(model: BertForSequenceClassification, variant: str, tile: int) -> Pruning:
    """Put gates into the model, with scores on both sides of the threshold of -2.2."""
    sites = cfsp.find_sites(model, ["mlp", "attention"])
    state, allocator = PartlyCut(model, sites), GlobalRank(allow_empty=True)
    whole = sum(site.units * state.cost(site) for site in sites)

    def decide(scores: Mapping[str, Tensor], due: float = 1.0) -> Mapping[str, tuple[int, ...]]:
        widths = allocate(state, sites, scores, {}, allocator, int(due * SHARE * whole))
        return choose(sites, scores, widths, allocator)

    pruning = Movement(variant=variant, tile=tile).attach(model, sites, SHARE, decide)
    for group in pruning.groups():
        for scores in group["params"]:
            scores.data = torch.randn_like(scores) * 2 - 2
    return pruning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variant", default="hybrid", choices=["struct", "hybrid", "block"])
    parser.add_argument("--tile", type=int, default=32)
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    options = parser.parse_args()
    plain, gated = encoder(), encoder()
    pruning = masked(gated, options.variant, options.tile)
    steps = [stepper(plain, None, options.rounds), stepper(gated, pruning, options.rounds)]
    ratios, chosen = [], []
    for number in range(-2, options.rounds):  # two rounds to warm up
        seconds, choosing = {}, {}
        for place in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            choosing[place] = steps[place](max(number, 0))
            seconds[place] = time.process_time() - start
        if number >= 0:
            ratios.append(seconds[1] / seconds[0])
            chosen.append(choosing[1])
    if not pruning.removed():
        raise SystemExit("no unit closed: the figure would lack what closing costs")
    report = said(options, ratios, chosen, pruning.removed())
    print(report)
    if options.markdown:
        options.markdown.write_text(report)


def said(options: argparse.Namespace, ratios: list[float], chosen: list[float], removed: float) -> str:
    """Return the report."""
    where = f"{len(ratios)} rounds in turns, {platform.machine()}, {torch.get_num_threads()} threads"
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return (
        f"A step with `{options.variant}` masks, tile {options.tile}, costs {median(ratios):.2f} plain steps "
        f"(range {spread}, {where}). Choosing masks takes {median(chosen):.2f} CPU seconds of it; at the end "
        f"{removed:.1%} of the parameters are masked.\n"
    )


if __name__ == "__main__":
    main()
