"""Moments: second moments of a consumer's input, for least squares and OBS.

A constant 1 is appended to the channels. So one matrix holds second moments, means and the fraction of
tokens that it sums over: [channels + 1, channels + 1], float64. Products within a chunk of tokens are
float32, their sums float64.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfsp.statistics.inputs import InputStatistic

TILE = 2048
"""Number of channels in a tile of the matrix. Only tiles on and above the diagonal are computed."""

HELD_OUT = 8
"""One sample in this many is held out."""


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products without TF32, whose error can exceed a ridge."""
    mkldnn = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  # made as it is imported
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def warn_of_few_tokens(site: str, stat: Mapping[str, Tensor]) -> None:
    """Warn on stderr if there are fewer tokens than channels, so that the ridge decides the solution."""
    tokens, channels = int(stat["input_tokens"]), len(stat["input_second_moment"]) - 1
    if tokens < channels:
        print(
            f"cfsp: {site}: {tokens:,} calibration tokens for {channels:,} channels; the ridge decides about "
            "the rest",
            file=sys.stderr,
        )


class SecondMoment(InputStatistic):
    """E[x x^T], E[x] and 1"""

    name = "input_second_moment"
    axes = 2

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.total: Tensor | None = None

    def update(self, channels: Tensor) -> None:
        self.count += len(channels)
        self.add(channels)

    def add(self, channels: Tensor) -> None:
        """Add the products of some tokens to the sum. [tokens, channels]"""
        size = channels.shape[1]
        if self.total is None:
            self.total = torch.zeros(size + 1, size + 1, dtype=torch.float64, device=channels.device)
        with full_float32():
            for first in range(0, size, TILE):
                rows = channels[:, first : first + TILE]
                for second in range(first, size, TILE):
                    columns = channels[:, second : second + TILE]
                    tile = self.total[first : first + TILE, second : second + TILE]
                    tile[: rows.shape[1], : columns.shape[1]] += rows.T @ columns
        self.total[:size, size] += channels.sum(0)
        self.total[size, size] += len(channels)

    def result(self) -> Tensor:
        """Return the mean over tokens. [channels + 1, channels + 1], float64"""
        assert self.total is not None, "a pass over no token has raised before"
        upper = self.total.triu_()  # in place, because these are the largest matrices of a run
        whole = upper.triu(1)
        whole.T.add_(upper).div_(self.count)
        return whole

    def finite(self) -> Tensor:
        """Return whether the diagonal is finite so far. [], bool

        A NaN or infinite product implies a NaN or infinite square.
        """
        assert self.total is not None, "is asked after a batch"
        return self.total.diagonal().isfinite().all()


class SecondMomentHeldOut(SecondMoment):
    """The part of `input_second_moment` from every 8th sample. The difference is from the other samples."""

    name = "input_second_moment_held_out"

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            samples = inputs[0].detach().reshape(self.rows, -1, inputs[0].shape[-1])
            masks = [None] * self.rows if self.mask is None else self.mask.view(self.rows, -1)
            for sample, mask in zip(samples, masks, strict=True):
                self.samples += 1
                shown = sample if mask is None else sample[mask]
                self.count += len(shown)
                self.add(shown.float() if self.samples % HELD_OUT == 0 else shown[:0].float())

        return module.register_forward_pre_hook(hook)

    def result(self) -> Tensor:
        if self.total is None or not self.total[-1, -1]:
            raise ValueError(
                f"ridge=auto holds out every {HELD_OUT}th calibration sample, and there are {self.samples}; "
                f"expected {HELD_OUT} or more, or a number"
            )
        return super().result()


class InputTokens(InputStatistic):
    """The number of tokens of the moments. result: scalar"""

    name = "input_tokens"
    axes = 0

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def update(self, channels: Tensor) -> None:
        self.count += len(channels)

    def result(self) -> Tensor:
        """Return the number of tokens. []"""
        return torch.tensor(float(self.count))
