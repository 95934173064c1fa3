"""Block distances: how far each block moves the hidden states."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfsp.model.block_states import states_in, states_out
from cfsp.model.sites import Site
from cfsp.statistics.base import Statistic


class BlockDistance(Statistic):
    """Mean over tokens of the distance between a block's input and output.

    It is the coarse importance of CFSP (Wang et al. 2024, arXiv:2409.13199, eq. 2). The paper and the
    released code sum over tokens, so their value grows with the calibration set. result: scalar; [units]
    if the units are blocks
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.total: Tensor | float = 0.0

    @staticmethod
    def modules(site: Site) -> tuple[str, ...]:
        return site.blocks

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before, after = self.chunks(states_in(args, kwargs)), self.chunks(states_out(output))
            for pair in zip(before, after, strict=True):
                distances = self.distance(*pair)
                self.count += len(distances)
                self.total = self.total + distances.sum(dtype=torch.float64)

        return module.register_forward_hook(hook, with_kwargs=True)

    @staticmethod
    @abstractmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        """Return the distance per token. [tokens, hidden] x 2 -> [tokens]"""

    def result(self) -> Tensor:
        """Return the mean over tokens. []"""
        return torch.as_tensor(self.total / self.count)


class BlockCosine(BlockDistance):
    """1 - cos"""

    name = "block_cosine"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return 1 - cosine(before, after)


class BlockAngular(BlockDistance):
    """arccos(cos) / pi, in [0, 1]"""

    name = "block_angular"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return cosine(before, after).arccos() / torch.pi


class BlockMSE(BlockDistance):
    """Mean over channels of (x - y)^2"""

    name = "block_mse"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return (before - after).square().mean(1)


class BlockMAE(BlockDistance):
    """Mean over channels of |x - y|"""

    name = "block_mae"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return (before - after).abs().mean(1)


class BlockTokens(BlockDistance):
    """The number of tokens, by which released codes scale a mean"""

    name = "block_tokens"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return torch.ones(len(before))

    def result(self) -> Tensor:
        """Return the number of tokens. []"""
        return torch.as_tensor(self.total)


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return the cosine per token, clamped because rounding can push it out of arccos's domain.

    [tokens, hidden] x 2 -> [tokens]
    """
    return torch.cosine_similarity(before, after, dim=1).clamp(-1, 1)
