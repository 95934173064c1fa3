"""Compare a few ways to prune MLPs without training, on your own model and texts, in windows of 256 tokens.

    python protocol.py MODEL TRAIN TEST [--characters TRAIN TEST] [--ways WAY...] [--seed N]

Calibration: 64 windows that start at `random.randint(0, tokens - 257)` after `random.seed(N)`. Perplexity:
over all whole windows of the test text. No special tokens, float32. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import cfsp
from cfsp.allocators.cfsp import CFSPReleased
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.compensation.least_squares import LeastSquares
from cfsp.criteria.obs import OBS

WINDOW, WINDOWS, BATCH = 256, 64, 16
REFIT: dict[str, Any] = {"ridge": 1e-3, "scale": "mean", "towards": "zero"}
"""Options of least squares that the published tables were made with."""
RESIDUAL = {
    "schedule": "blockwise",
    "criterion": OBS(),
    "compensation": LeastSquares(**REFIT, target="residual"),
}
CONSTANT = RESIDUAL | {
    "criterion": OBS(constant=True),
    "compensation": LeastSquares(**REFIT, target="residual", constant=True),
}
WAYS = {
    "CFSP as released": {"variant": "released", "allocator": CFSPReleased()},
    "its units, uniform": {"variant": "released", "allocator": "uniform"},
    "least squares": {"variant": "released", "compensation": LeastSquares(**REFIT), "allocator": "uniform"},
    "greedy OBS": {"criterion": OBS(), "compensation": LeastSquares(**REFIT), "allocator": "uniform"},
    "block by block": RESIDUAL | {"compensation": LeastSquares(**REFIT), "allocator": "uniform"},
    "target residual": RESIDUAL | {"allocator": "uniform"},
    "a constant": CONSTANT | {"allocator": "uniform"},
    "error curves": RESIDUAL | {"allocator": ErrorCurves()},
    "error curves, towards the kept weights": RESIDUAL
    | {
        "compensation": LeastSquares(target="residual", scale="mean", towards="kept", ridge=1e-2),
        "allocator": ErrorCurves(),
    },
    "error curves, a constant": CONSTANT | {"allocator": ErrorCurves()},
    "30 swaps too": CONSTANT | {"criterion": OBS(constant=True, swaps=30), "allocator": ErrorCurves()},
}
"""Up to the target "residual" each changes one option of the one before; the rest change one of that."""


@torch.no_grad()
def perplexity(model: PreTrainedModel, windows: Tensor) -> float:
    """windows: [windows, tokens]"""
    total = 0.0
    for ids in windows.split(BATCH):
        losses = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        total -= losses.double().sum().item()
    return math.exp(total / windows[:, 1:].numel())


def calibration(ids: Tensor, seed: int) -> list[dict[str, Tensor]]:
    dice = random.Random(seed)
    starts = [dice.randint(0, len(ids) - WINDOW - 1) for _ in range(WINDOWS)]
    windows = torch.stack([ids[start : start + WINDOW] for start in starts])
    return [{"input_ids": part} for part in windows.split(BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument(
        "--characters", nargs=2, type=int, default=(None, None), help="read so many of each text"
    )
    parser.add_argument("--sparsity", nargs="+", type=float, default=(0.2, 0.3, 0.5))
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], metavar="WAY")
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    dense = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    train, test = (
        tokenizer(
            path.read_text(encoding="utf-8")[:characters], add_special_tokens=False, return_tensors="pt"
        ).input_ids[0]
        for path, characters in zip((given.train, given.test), given.characters, strict=True)
    )
    batches = calibration(train, given.seed)
    windows = test[: len(test) // WINDOW * WINDOW].view(-1, WINDOW)
    print(f"dense: {perplexity(dense, windows):.3f}\n")
    print(f"| way | {' | '.join(f'{share:.0%}' for share in given.sparsity)} | seconds of a plan |")
    print("|---" * (len(given.sparsity) + 2) + "|", flush=True)
    for name in given.ways:
        cells, seconds = [], []
        for sparsity in given.sparsity:
            model = copy.deepcopy(dense)
            start = time.perf_counter()
            plan = cfsp.plan(model, batches, sparsity=sparsity, **WAYS[name])
            seconds.append(time.perf_counter() - start)
            cfsp.apply(plan, model)
            cells.append(f"{perplexity(model, windows):.3f}")
        print(f"| {name} | {' | '.join(cells)} | {max(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
