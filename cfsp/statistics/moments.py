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

MOMENTS = {"equal": "input_second_moment", "relative": "relative_second_moment"}
"""How tokens count -> the statistic. Held-out samples: the same name with `_held_out`."""


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
    moment = next(stat[name] for name in MOMENTS.values() if name in stat)
    tokens, channels = int(stat["input_tokens"]), len(moment) - 1
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
        self.count: Tensor | float = 0.0
        self.total: Tensor | None = None

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.read(inputs[0].detach(), output.detach())

        return module.register_forward_hook(hook)

    def read(self, inputs: Tensor, output: Tensor) -> None:
        """Add the tokens of a batch. [..., channels], [..., outputs]"""
        for channels, factors in zip(self.chunks(inputs), self.factors(output), strict=True):
            self.update(torch.cat([channels * factors, factors], dim=1))

    def factors(self, output: Tensor) -> Iterator[Tensor]:
        """Yield a factor for each shown token and its constant. [..., outputs] -> [tokens, 1] each"""
        for chunk in self.chunks(output[..., :1]):
            yield torch.ones_like(chunk)

    def update(self, channels: Tensor) -> None:
        """Add some tokens. [tokens, channels + 1]"""
        self.count = self.count + channels[:, -1].square().sum().double()
        self.add(channels)

    def add(self, channels: Tensor) -> None:
        """Add the products of some tokens to the sum. [tokens, channels + 1]"""
        size = channels.shape[1]
        if self.total is None:
            self.total = torch.zeros(size, size, dtype=torch.float64, device=channels.device)
        with full_float32():
            for first in range(0, size, TILE):
                rows = channels[:, first : first + TILE]
                for second in range(first, size, TILE):
                    columns = channels[:, second : second + TILE]
                    tile = self.total[first : first + TILE, second : second + TILE]
                    tile += rows.T @ columns

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


NORM_EPS = 1e-6
"""What Gemma's norms add to a mean square."""


class RelativeSecondMoment(SecondMoment):
    """The same with every token weighted by 1 / (|y|^2 / outputs + 1e-6), y the consumer's output.

    Errors of y then count relative to it, as they do where an RMS norm follows the consumer (Gemma, OLMo 2).
    The 1e-6 is the norm's own, so it is relative to nothing: some tokens of Gemma 3 270M have mean squares of
    1e-8 where the median is 5e-3. Their norm is mostly that constant, and without it one of them would count
    as much as all others.
    """

    name = "relative_second_moment"

    def factors(self, output: Tensor) -> Iterator[Tensor]:
        for chunk in self.chunks(output):
            yield (chunk.square().mean(1, keepdim=True) + NORM_EPS).rsqrt()


class HeldOut(SecondMoment):
    """The part of a moment from every 8th sample. The difference is from the other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def read(self, inputs: Tensor, output: Tensor) -> None:
        rows, mask = self.rows, self.mask
        masks = [None] * rows if mask is None else mask.view(rows, -1)
        by_sample = [states.reshape(rows, -1, states.shape[-1]) for states in (inputs, output)]
        for *sample, self.mask in zip(*by_sample, masks, strict=True):
            self.samples += 1
            super().read(*sample)
        self.mask = mask

    def add(self, channels: Tensor) -> None:
        super().add(channels if self.samples % HELD_OUT == 0 else channels[:0])

    def result(self) -> Tensor:
        if self.total is None or not self.total[-1, -1]:
            raise ValueError(
                f"ridge=auto holds out every {HELD_OUT}th calibration sample, and there are {self.samples}; "
                f"expected {HELD_OUT} or more, or a number"
            )
        return super().result()


class SecondMomentHeldOut(HeldOut):
    """The part of `input_second_moment`."""

    name = "input_second_moment_held_out"


class RelativeSecondMomentHeldOut(HeldOut, RelativeSecondMoment):
    """The part of `relative_second_moment`."""

    name = "relative_second_moment_held_out"


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
