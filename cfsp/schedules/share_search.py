"""Share search: how much of its inputs each matrix of an MLP reads, by the error of its block (TEAL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cfsp.model.block_states import states_out
from cfsp.model.routers import Router

STEP = 0.05
"""Part of an MLP's weights that one step leaves out, as in TEAL's release. Less is finer, and slower."""

TRIED = 4096
"""Tokens after which a trial keeps no further batch. Each candidate of a step computes the block on them."""

CRUMB = 1e-9
"""Parts of the weights below this are rounding."""


def greedy_shares(
    sizes: Sequence[int], active: float, error: Callable[[Sequence[float]], float]
) -> list[float]:
    """Return the share of inputs that each matrix reads; weighted by the sizes, their mean is `active`.

    Each step leaves out equally many weights of the one matrix with which the error is the least (Liu et al.
    2024, arXiv:2408.14690, algorithm 1). The last step is as short as it must be. sizes: numbers of weights.
    """
    parts = [size / sum(sizes) for size in sizes]
    shares, left = [1.0] * len(parts), 1 - active
    while left > CRUMB:
        candidates = []
        for place, part in enumerate(parts):
            taken = min(STEP, left, part * shares[place])
            if taken > CRUMB:
                lower = max(0.0, shares[place] - taken / part)
                candidates.append(([*shares[:place], lower, *shares[place + 1 :]], taken))
        errors = [error(shares) for shares, _ in candidates]
        shares, taken = candidates[errors.index(min(errors))]
        left -= taken
    return shares


class BlockTrial:
    """Computes a block again on what it read of the first batches, with masks in its MLP.

    layers: the MLP's producers, then its consumer. `keep` is a forward hook for the block, with keyword
    arguments; it takes the batches in order.
    """

    def __init__(
        self, block: nn.Module, layers: Sequence[nn.Module], shown: Sequence[Tensor | None], sizes: list[int]
    ) -> None:
        self.block, self.layers, self.shown, self.sizes = block, layers, shown, sizes
        self.calls: list[tuple[tuple, Mapping[str, Any], Tensor]] = []
        self.tokens = 0

    def keep(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Remember the arguments and the output of the dense block."""
        if self.tokens < TRIED:
            states = states_out(output).detach().clone()
            self.calls.append((args, kwargs, states))
            self.tokens += states.shape[:-1].numel()

    @torch.no_grad()
    def error(self, router: Router) -> float:
        """Return the squared error of the block's output by its squared norm, the mean over tokens.

        So tokens of all magnitudes count alike: the few of a sequence that are huge would decide alone.
        """
        errors = []
        with masked(self.layers, router):
            for (args, kwargs, dense), shown in zip(self.calls, self.shown, strict=False):
                expected = dense.float().flatten(0, -2)  # [tokens, hidden]
                found = states_out(self.block(*args, **kwargs)).float().flatten(0, -2)
                one = (found - expected).square().sum(1) / expected.square().sum(1).clamp_min(1e-12)
                errors.append(one if shown is None else one[shown.to(one.device)])
        return float(torch.cat(errors).mean())


@contextmanager
def masked(layers: Sequence[nn.Module], router: Router) -> Iterator[None]:
    """Multiply the inputs of an MLP's layers by a router's masks. layers: producers, then the consumer."""

    def hook(part: int) -> Callable:
        def mask(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            used = router.close(rows) if part == len(layers) - 1 else router.thin(rows, part)
            assert used is not None, "a router of thresholds masks every layer"
            return (inputs[0] * used.view(inputs[0].shape),)

        return mask

    with ExitStack() as stack:
        for part, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(hook(part)).remove)
        yield
