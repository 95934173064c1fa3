"""Statistics: everything that criterion and allocator ask of calibration, in one forward pass.

A statistic is a mean over the tokens that the attention mask shows, so it depends neither on how
samples are batched nor on how many there are. Tokens are taken in chunks, in float32; the sums over
chunks run in float64, and only vectors are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from cfsp.layouts import check_positions
from cfsp.sites import Site

CHUNK = 1024
"""Tokens that a statistic takes at once: bounds its temporaries by a share of a batch's activations."""

Stats = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> value."""


class Statistic(ABC):
    """One thing measured at one site over all batches."""

    name: ClassVar[str]
    per_block: ClassVar[bool] = False
    """Measured on the whole block, hence once for all of its sites."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        """Which tokens of the current batch count. [batch * tokens], None: all of them"""

    def chunks(self, states: Tensor) -> Iterator[Tensor]:
        """The counted tokens in float32. [..., channels] -> [up to CHUNK tokens, channels] each"""
        rows = states.detach().flatten(0, -2).split(CHUNK)
        masks = [None] * len(rows) if self.mask is None else self.mask.split(CHUNK)
        for chunk, mask in zip(rows, masks, strict=True):
            yield (chunk if mask is None else chunk[mask]).float()

    @abstractmethod
    def watch(self, model: nn.Module, site: Site) -> RemovableHandle:
        """Attach to the model. The handle detaches."""

    @abstractmethod
    def result(self) -> Tensor:
        """The value over all tokens seen so far."""


class InputStatistic(Statistic):
    """Measured at the input of the site's consumer. result: [units * span], float64"""

    def watch(self, model: nn.Module, site: Site) -> RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for channels in self.chunks(inputs[0]):
                self.update(channels)

        return model.get_submodule(site.consumers[0].module).register_forward_pre_hook(hook)

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


class BlockDistance(Statistic):
    """How far a block moves a token: mean over tokens of a distance of its input and output.

    The coarse importance of CFSP (Wang et al. 2024, arXiv:2409.13199, eq. 2); the paper and the
    released code take a sum over tokens, whose size grows with the calibration set. result: scalar
    """

    per_block = True

    def __init__(self) -> None:
        super().__init__()
        self.count, self.total = 0, 0.0

    def watch(self, model: nn.Module, site: Site) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            for pair in zip(self.chunks(before), self.chunks(after), strict=True):
                distances = self.distance(*pair)
                self.count += len(distances)
                self.total = self.total + distances.sum(dtype=torch.float64)

        return model.get_submodule(site.block_module).register_forward_hook(hook, with_kwargs=True)

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


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Cosine per token, clamped because rounding can push it out of arccos's domain."""
    return torch.cosine_similarity(before, after, dim=1).clamp(-1, 1)


STATISTICS: dict[str, type[Statistic]] = {
    statistic.name: statistic
    for statistic in (
        InputMean,
        InputSquareMean,
        InputVariance,
        BlockAngular,
        BlockCosine,
        BlockMSE,
        BlockMAE,
    )
}


@torch.no_grad()
def collect(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
) -> Stats:
    """Run every batch through the model once and return the statistics asked for at every site.

    batches: dicts with `input_ids` [batch, tokens] and, if tokens are padded, `attention_mask`.

    Raises:
        KeyError: an unknown statistic.
        ValueError: no batches, a batch longer than the model's positions, or NaN or infinity in a
            statistic; the message names the block and the batch.
    """
    unknown = [needs] if isinstance(needs, str) else [name for name in needs if name not in STATISTICS]
    if unknown:
        raise KeyError(f"needs={unknown[0]!r}: expected a set of {', '.join(STATISTICS)}")
    watchers = assign(sites, needs)
    distinct = {id(statistic): (statistic, site) for (site, _), statistic in watchers.items()}
    pairs = list(distinct.values())
    training = [module for module in model.modules() if module.training]
    handles = []
    number = -1
    try:
        model.eval()
        for statistic, site in pairs:
            handles.append(statistic.watch(model, site))
        for number, batch in enumerate(tqdm(batches, "calibration", unit="batch", disable=None)):
            check_positions(model, batch["input_ids"].shape[1], "calibration seqlen")
            feed(model, batch, [statistic for statistic, _ in pairs], number)
            check_finite(pairs, number)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if number < 0:
        raise ValueError("calibration gave no batches; expected at least one")
    stats: Stats = {site.name: {} for site in sites}
    for (site, name), statistic in watchers.items():
        stats[site.name][name] = statistic.result()
    return stats


def assign(sites: Sequence[Site], needs: Collection[str]) -> dict[tuple[Site, str], Statistic]:
    """One statistic per site and name; the sites of a block share those measured per block."""
    made: dict[tuple[str, str], Statistic] = {}
    watchers = {}
    for site in sites:
        for name in sorted(needs):
            place = site.block_module if STATISTICS[name].per_block else site.name
            watchers[site, name] = made.setdefault((place, name), STATISTICS[name]())
    return watchers


def feed(
    model: PreTrainedModel, batch: Mapping[str, Tensor], statistics: Sequence[Statistic], number: int
) -> None:
    """One forward pass without the head: no statistic reads the logits."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask = inputs.get("attention_mask")
    if mask is not None and not mask.any():
        raise ValueError(f"calibration batch {number} masks every token; expected at least one to count")
    counted = None if mask is None or mask.all() else mask.flatten().bool()
    for statistic in statistics:
        statistic.mask = counted
    model.base_model(**inputs, use_cache=False)


def check_finite(pairs: Sequence[tuple[Statistic, Site]], batch: int) -> None:
    """Raise ValueError at the first batch that made a statistic NaN or infinite.

    All running results are tested together, which costs a GPU one synchronisation per batch.
    """
    finite = torch.stack([statistic.result().isfinite().all() for statistic, _ in pairs])
    if not finite.all():
        statistic, site = pairs[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"{statistic.name} is NaN or infinite in block {site.block} ({site.name}) at calibration "
            f"batch {batch}; check the weights, or load the model with dtype=float32"
        )
