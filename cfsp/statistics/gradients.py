"""Gradients: estimate how much the removal of weights changes the model's loss (LLM-Pruner)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.model.blocks import block_modules, check_positions
from cfsp.model.remaining import Remaining
from cfsp.model.sites import Site
from cfsp.model.views import learned_weights
from cfsp.model.weights import whole_weight
from cfsp.passes.modes import evaluating
from cfsp.statistics.base import STATISTICS, Quantity, Stats
from cfsp.statistics.losses import loss_of, predicted_tokens, split_samples
from cfsp.statistics.output_gradients import OutputGradientMoment, OutputMoments


class GradientStatistic(Quantity):
    """Importance of weights, from their gradients' mean and mean square over samples (arXiv:2305.11627).

    It is summed over all elements of a place on the unit's axis. A site's result concatenates the vectors of
    its learned weights. [sum over weights of units * span]; if units are blocks, each place is a whole
    weight.
    """

    backward = True

    reads: ClassVar[frozenset[str]] = frozenset({"mean"})
    """The moments of the gradient that it reads: "mean", "square"."""

    @staticmethod
    @abstractmethod
    def importance(weight: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        """Return the importance of every element of a weight, in float32. [the weight's axes]

        moments: the ones in `reads`.
        """

    @classmethod
    def of_remaining(cls, value: Tensor, remaining: Remaining) -> Tensor:
        """Return the elements of the weights that are left. [weights left]"""
        return value[remaining.learned]


class TaylorVectorize(GradientStatistic):
    """g w; the absolute value is taken of its sum"""

    name = "taylor_vectorize"

    @staticmethod
    def importance(weight: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        return moments["mean"] * weight


class TaylorFirst(GradientStatistic):
    """|g w|"""

    name = "taylor_first"

    @staticmethod
    def importance(weight: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        return (moments["mean"] * weight).abs()


class TaylorSecond(GradientStatistic):
    """h w^2"""

    name = "taylor_second"
    reads = frozenset({"square"})

    @staticmethod
    def importance(weight: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        return moments["square"] * weight.square()


class TaylorMix(GradientStatistic):
    """|g w - h w^2 / 2|"""

    name = "taylor_mix"
    reads = frozenset({"mean", "square"})

    @staticmethod
    def importance(weight: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        return (moments["mean"] * weight - moments["square"] * weight.square() / 2).abs()


def gradient_statistic(name: str) -> type[GradientStatistic]:
    """Return the class of a statistic of gradients."""
    kind = STATISTICS[name]
    assert issubclass(kind, GradientStatistic), f"{name} says that it is made of gradients"
    return kind


class Moments:
    """Mean and mean square of one weight's gradient over samples. Each sample is one backward pass.

    A hook adds and frees each gradient as soon as it is complete, so at most one exists at a time. The
    moments take one float32 per element, or two if both are needed.
    """

    def __init__(self, weight: nn.Parameter, mean: bool, square: bool):
        self.weight = weight
        # In half precision, a sum over many samples stops growing and squares underflow.
        self.mean = torch.zeros_like(weight, dtype=torch.float32) if mean else None
        self.square = torch.zeros_like(weight, dtype=torch.float32) if square else None
        self.share = 1.0
        """The current sample's fraction of all predicted tokens."""

    def take(self, weight: nn.Parameter) -> None:
        """Add the gradient of one sample. A hook that runs when this weight's gradient is complete."""
        gradient, weight.grad = weight.grad, None
        assert gradient is not None, "the hook runs when there is one"
        if self.mean is not None:
            self.mean.add_(gradient, alpha=self.share)
        if self.square is not None:
            gradient = gradient.float()
            self.square.addcmul_(gradient, gradient, value=self.share)

    def importance(self, name: str, weight: Tensor | None = None) -> Tensor:
        """Return a statistic's importance of every element, in float32. [the weight's axes]

        weight: what the layer computes with, where adapters add to its own weight.
        """
        own = self.weight.detach() if weight is None else weight
        kind, there = gradient_statistic(name), {"mean": self.mean, "square": self.square}
        moments = {one: moment.float() for one in kind.reads if (moment := there[one]) is not None}
        return kind.importance(own.float(), moments)


def backpropagate(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    checkpointing: bool = False,
) -> Stats:
    """Return site name -> gradient statistic -> value, from one backward pass per sample.

    The moments weight a sample by its predicted tokens. Embeddings and the head stay frozen.

    batches: dicts with `input_ids` [batch, tokens], `attention_mask` if tokens are padded, `counted` if the
        loss is of some tokens alone, and `labels` if the model does not predict the next token.

    Raises:
        ValueError: no samples, a loss that is NaN or infinite, or no labels where they are needed.
    """
    of_weights = {*needs} - {OutputGradientMoment.name}
    moments = moments_of(model, sites, of_weights) if of_weights else {}
    outputs = OutputMoments(sites) if of_weights != {*needs} else None
    with ExitStack() as stack:
        stack.enter_context(only_gradients_of(model, moments))
        if outputs is not None:
            stack.enter_context(outputs.watching(model))
        if checkpointing:
            stack.enter_context(checkpointed(model))
        go_through(model, [one for batch in batches for one in split_samples(batch, model)], moments, outputs)
    stats: Stats = {}
    for site in sites:
        stats[site.name] = {name: vector_of_site(model, site, name, moments) for name in of_weights}
        if outputs is not None:
            stats[site.name][OutputGradientMoment.name] = outputs.of_site(site)
    return stats


def go_through(
    model: PreTrainedModel,
    samples: Sequence[Mapping[str, Tensor]],
    moments: Mapping[int, Moments],
    outputs: OutputMoments | None,
) -> None:
    """Make a forward and a backward pass for each sample, and say how many tokens it predicts."""
    counts = predicted_tokens(model, samples)
    for number, sample in enumerate(bar(samples, "gradients", "sample")):
        check_positions(model, sample["input_ids"].shape[1], "calibration seqlen")
        for moment in moments.values():
            moment.share = counts[number] / sum(counts)
        loss = loss_of(model, sample, number)
        if outputs is not None:
            outputs.begin(counts[number], counts[number] if moments else 1)
            loss = loss if moments else loss * counts[number]  # in float16 those of the mean would underflow
        loss.backward()


def moments_of(model: PreTrainedModel, sites: Sequence[Site], needs: Collection[str]) -> dict[int, Moments]:
    """Return id of a learned weight -> the moments of its gradient that the statistics read."""
    reads = frozenset().union(*(gradient_statistic(name).reads for name in needs))
    return {
        id(weight): Moments(weight, "mean" in reads, "square" in reads)
        for site in sites
        for weight in site_weights(model, site)
    }


def site_weights(model: PreTrainedModel, site: Site) -> Iterator[nn.Parameter]:
    """Yield the learned weights of a site's units."""
    for row in learned_weights(model, site):
        yield from (weight for weight in row if weight is not None) if site.units_are_blocks else row[:1]


def vector_of_site(model: PreTrainedModel, site: Site, name: str, moments: Mapping[int, Moments]) -> Tensor:
    """Return one site's vector of a statistic. [sum over its weights of units * span]"""
    parts = []
    for row in learned_weights(model, site):
        if site.units_are_blocks:
            zero = torch.zeros((), device=model.device)
            part = torch.stack([zero if w is None else moments[id(w)].importance(name).sum() for w in row])
        else:
            weight, member = row
            used = whole_weight(model, member.module)
            importance = moments[id(weight)].importance(name, used).movedim(member.dim, 0)
            places = member.places(range(site.units)).to(importance.device)
            part = importance.reshape(len(importance), -1).sum(1)[places]
        parts.append(part.abs())
    return torch.cat(parts)


@contextmanager
def only_gradients_of(model: PreTrainedModel, moments: Mapping[int, Moments]) -> Iterator[None]:
    """Compute gradients of only these weights, in eval mode, and restore the model afterwards."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    handles = []
    try:
        for weight, _, _ in before:
            weight.requires_grad_(id(weight) in moments)
            weight.grad = None
            if id(weight) in moments:
                handles.append(weight.register_post_accumulate_grad_hook(moments[id(weight)].take))
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, required, grad in before:
            weight.requires_grad_(required)
            weight.grad = grad


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Store only the blocks' inputs for the backward pass. transformers' version needs training mode."""
    blocks = [model.get_submodule(path) for path in block_modules(model)]
    blocks = [block for block in blocks if "forward" not in vars(block)]  # a walk skips the others
    try:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            del block.forward
