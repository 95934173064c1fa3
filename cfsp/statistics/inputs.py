"""Inputs: statistics of the consumer's input."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfsp.model.sites import Site
from cfsp.statistics.base import Statistic


class InputStatistic(Statistic):
    """A statistic of the consumer's input. result: [units * span], float64"""

    @staticmethod
    def modules(site: Site) -> tuple[str, ...]:
        return (site.consumers[0].module,) if site.blocks and site.consumers else ()

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for channels in self.chunks(inputs[0]):
                self.update(channels)

        return module.register_forward_pre_hook(hook)

    @abstractmethod
    def update(self, channels: Tensor) -> None:
        """Add some tokens. [tokens, channels]"""


class InputMean(InputStatistic):
    """E[x]"""

    name = "input_mean"

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.total: Tensor | float = 0.0

    def update(self, channels: Tensor) -> None:
        self.count += len(channels)
        self.total = self.total + self.batch_sum(channels).double()

    def batch_sum(self, channels: Tensor) -> Tensor:
        """Return the sum over tokens of the averaged quantity. [tokens, channels] -> [channels]"""
        return channels.sum(0)

    def result(self) -> Tensor:
        return torch.as_tensor(self.total / self.count)


class InputSquareMean(InputMean):
    """E[x^2]"""

    name = "input_sq_mean"

    def batch_sum(self, channels: Tensor) -> Tensor:
        return channels.square().sum(0)


class InputVariance(InputStatistic):
    """E[(x - E[x])^2], with batches merged pairwise (Chan, Golub and LeVeque 1979).

    E[x^2] - E[x]^2 would lose precision if the mean is large.
    """

    name = "input_var"

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def update(self, channels: Tensor) -> None:
        count = len(channels)
        if not count:
            return
        mean = channels.mean(0)
        squares = (channels - mean).square().sum(0).double()
        total = self.count + count
        delta = mean.double() - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def result(self) -> Tensor:
        return torch.as_tensor(self.squares / self.count)


class InputVarianceReleased(InputStatistic):
    """FLAP's released fluctuation: about tokens per sample times E[(x - E[x])^2], in sample order

    v <- v (k - 1) / k + sum over tokens of (x - m)^2 / (k + 1) at sample k + 1; v = 0 after the first
    sample. m is the mean of the samples so far, including the new one, because the released code updates
    it in place through an alias; Welford's formula has the old mean in one factor. An et al. 2023,
    arXiv:2312.11983.
    """

    name = "input_var_released"

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0
        self.mean: Tensor | float = 0.0
        self.fluctuation: Tensor | float = 0.0

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels = inputs[0].shape[-1]  # OPT's MLP gets the tokens of all samples as one row
            samples = inputs[0].detach().reshape(self.rows, -1, channels)
            masks = [None] * self.rows if self.mask is None else self.mask.view(self.rows, -1)
            for sample, mask in zip(samples, masks, strict=True):
                self.update(sample.float() if mask is None else sample[mask].float())

        return module.register_forward_pre_hook(hook)

    def update(self, channels: Tensor) -> None:
        seen = self.samples
        self.mean = (self.mean * seen + channels.mean(0).double()) / (seen + 1)
        if seen:
            squares = (channels - self.mean.float()).square().sum(0).double()
            self.fluctuation = self.fluctuation * ((seen - 1) / seen) + squares / (seen + 1)
        else:
            self.fluctuation = torch.zeros_like(self.mean)
        self.samples += 1

    def result(self) -> Tensor:
        return torch.as_tensor(self.fluctuation)
