"""Statistics: what can be measured at a site while calibration batches pass through the model.

A statistic is a mean over the tokens that the attention mask shows, so it depends neither on how
samples are batched nor on how many there are. Tokens are taken in chunks, in float32; the sums over
chunks run in float64, and only vectors are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfsp.sites import Site

CHUNK = 1024
"""Tokens that a statistic takes at once: bounds its temporaries by a share of a batch's activations."""

Stats = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> value."""

STATISTICS: dict[str, type[Statistic]] = {}
"""Name -> statistic of activations. Each puts itself here when its class is defined, wherever that is."""


class Statistic(ABC):
    """One thing measured at one site over all batches.

    A subclass with a `name` is known from then on: a criterion that lists the name in `needs` gets it.
    """

    name: ClassVar[str]

    axes: ClassVar[int] = 1
    """Leading axes of the result that run over channels; where there are two, with a constant appended."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the class known by its name.

        Raises ValueError if another has it; the same class defined again, as in a notebook, takes over.
        """
        super().__init_subclass__(**options)
        if "name" not in vars(cls):  # a base for others
            return
        path = f"{cls.__module__}.{cls.__qualname__}"
        known = STATISTICS.setdefault(cls.name, cls)
        if f"{known.__module__}.{known.__qualname__}" != path:
            raise ValueError(
                f"statistic name={cls.name!r} of {path}: {known.__module__}.{known.__qualname__} has it; "
                "expected a name of its own"
            )
        STATISTICS[cls.name] = cls

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        """Which tokens of the current batch count. [batch * tokens], None: all of them"""
        self.rows = 1
        """Samples in the current batch."""

    def chunks(self, states: Tensor) -> Iterator[Tensor]:
        """The counted tokens in float32. [..., channels] -> [up to CHUNK tokens, channels] each"""
        rows = states.detach().flatten(0, -2).split(CHUNK)
        masks = [None] * len(rows) if self.mask is None else self.mask.split(CHUNK)
        for chunk, mask in zip(rows, masks, strict=True):
            yield (chunk if mask is None else chunk[mask]).float()

    @staticmethod
    @abstractmethod
    def modules(site: Site) -> tuple[str, ...]:
        """Paths of the modules that it is measured at: one, or one for each unit."""

    @abstractmethod
    def watch(self, module: nn.Module) -> RemovableHandle:
        """Attach to a module. The handle detaches."""

    @abstractmethod
    def result(self) -> Tensor:
        """The value over all tokens seen so far."""

    def finite(self) -> Tensor:
        """Whether it is neither NaN nor infinite so far. scalar, bool"""
        return self.result().isfinite().all()


class InputStatistic(Statistic):
    """Measured at the input of the site's consumer. result: [units * span], float64"""

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
        """Take in some tokens. [tokens, channels]"""


class InputMean(InputStatistic):
    """E[x]"""

    name = "input_mean"

    def __init__(self) -> None:
        super().__init__()
        self.count, self.total = 0, 0.0

    def update(self, channels: Tensor) -> None:
        self.count += len(channels)
        self.total = self.total + self.batch_sum(channels).double()

    def batch_sum(self, channels: Tensor) -> Tensor:
        return channels.sum(0)

    def result(self) -> Tensor:
        return self.total / self.count


class InputSquareMean(InputMean):
    """E[x^2]"""

    name = "input_sq_mean"

    def batch_sum(self, channels: Tensor) -> Tensor:
        return channels.square().sum(0)


class InputVariance(InputStatistic):
    """E[(x - E[x])^2], batches merged pairwise (Chan, Golub and LeVeque 1979).

    E[x^2] - E[x]^2 would lose its digits where the mean is large.
    """

    name = "input_var"

    def __init__(self) -> None:
        super().__init__()
        self.count, self.mean, self.squares = 0, 0.0, 0.0

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
        return self.squares / self.count


class InputVarianceReleased(InputStatistic):
    """FLAP's released fluctuation: about tokens per sample times E[(x - E[x])^2], in sample order

    v <- v (k - 1) / k + sum over tokens of (x - m)^2 / (k + 1) at sample k + 1, m the mean of the
    samples so far, the new one included (a mean that is updated in place through an alias; Welford's
    formula has the old mean in one factor); 0 after the first sample. An et al. 2023, arXiv:2312.11983.
    """

    name = "input_var_released"

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.mean, self.fluctuation = 0, 0.0, 0.0

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels = inputs[0].shape[-1]  # OPT's MLP sees all samples' tokens as one row
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
        return self.fluctuation


class BlockDistance(Statistic):
    """How far a block moves a token: mean over tokens of a distance of its input and output.

    The coarse importance of CFSP (Wang et al. 2024, arXiv:2409.13199, eq. 2); the paper and the
    released code take a sum over tokens, whose size grows with the calibration set. result: scalar;
    [units] where the units are blocks
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.total = 0, 0.0

    @staticmethod
    def modules(site: Site) -> tuple[str, ...]:
        return site.blocks

    def watch(self, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            for pair in zip(self.chunks(before), self.chunks(after), strict=True):
                distances = self.distance(*pair)
                self.count += len(distances)
                self.total = self.total + distances.sum(dtype=torch.float64)

        return module.register_forward_hook(hook, with_kwargs=True)

    @staticmethod
    @abstractmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        """[tokens, hidden] x 2 -> [tokens]"""

    def result(self) -> Tensor:
        return self.total / self.count


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
    """The number of tokens, by which released codes scale what others take a mean of"""

    name = "block_tokens"

    @staticmethod
    def distance(before: Tensor, after: Tensor) -> Tensor:
        return torch.ones(len(before))

    def result(self) -> Tensor:
        return self.total


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine per token, clamped because rounding can push it out of arccos's domain."""
    return torch.cosine_similarity(before, after, dim=1).clamp(-1, 1)
