"""Routed shares: how much of a routed model's MLPs is used, by one token and by a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.data.texts import Text
from cfsp.evaluation.base import Evaluator
from cfsp.evaluation.text_windows import TextWindows
from cfsp.model.blocks import block_modules, check_positions
from cfsp.model.modeling_routed import RoutedMLP, routed_mlps
from cfsp.model.weights import weight_of
from cfsp.passes.forward import counted_tokens, feed
from cfsp.records.record import Metric

TENTHS = 10


@dataclass
class Use:
    """What the passes over a text used of one routed MLP.

    parts: of the MLP's weights that each matrix has [matrices]. shares: parts of each matrix that are used,
    summed over tokens [matrices]. unions: batch size -> sum of the shares of neurons that at least one of so
    many sequences uses at a position, and their number. uses: tokens that used each expert [experts].
    """

    parts: Tensor
    shares: Tensor | float = 0.0
    uses: Tensor | float = 0.0
    tokens: int = 0
    unions: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, routed: RoutedMLP, shown: Tensor, sizes: Sequence[int]) -> None:
        """Take in the last pass. shown: which tokens are no padding. [sequences, tokens]"""
        chosen, real = routed.chosen, shown.flatten()
        assert chosen is not None, "a pass chooses"
        real = real.to(chosen.device)
        self.shares = self.shares + routed.shares()[real].double().sum(0).cpu()
        self.uses = self.uses + chosen[real].double().sum(0).cpu()
        self.tokens += int(real.sum())
        together = chosen.view(*shown.shape, -1)  # [sequences, tokens, experts]
        for size in sizes:
            for some, theirs in zip(together.split(size), shown.split(size), strict=True):
                if len(some) == size:
                    union = some.any(0).float().mean(1)[theirs.all(0).to(chosen.device)]  # [tokens]
                    self.unions[size][0] += float(union.sum())
                    self.unions[size][1] += len(union)


@dataclass(frozen=True)
class RoutedShares(Evaluator):
    """Active share of the MLPs' units, per block and per token; unions; FLOPs; a histogram of experts' use.

    A dense model uses everything: all its shares are 1. The active share counts the parts of an MLP's
    matrices that a token needs. The union is that of the units which the sequences of a batch use at one
    position: what a batch of one token each reads. FLOPs per token are those of the linear layers in the
    blocks, two per multiplication, without attention scores and the head, in 2^30, the routers included
    (the convention of Zheng et al., arXiv:2402.06126, table 1).
    """

    text: Text
    window: int
    windows: int
    batches: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("window", "windows"):
            check_integer(f"routing {name}", getattr(self, name), least=1)
        for size in self.batches:
            check_integer("routing batches", size, least=1)
        if max(self.batches, default=1) > self.windows:
            raise ValueError(
                f"routing batches={[*self.batches]} with windows={self.windows}: a batch has a window per "
                f"sequence; expected windows={max(self.batches)} or more"
            )

    def reads(self) -> Sequence[Text]:
        return [self.text]

    @cached_property
    def reader(self) -> TextWindows:
        """The reader of the text's windows."""
        return TextWindows("routing", self.text, self.window, self.windows)

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        check_positions(model, self.window, "routing window")
        self.reader.check(tokenizer)
        return {
            "measure": "routing",
            "text": self.text.label,
            "window": self.window,
            "windows": self.windows,
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return `active_share`, `active_share_block_3`, `union_share_of_4`, `gflops_per_token`, and
        `experts_used_10_to_20` (the share of experts that so many per cent of the tokens use), on the text.
        """
        protocol, ids = self.protocol(model, tokenizer), self.reader.rows(tokenizer)
        batches = [{"input_ids": one} for one in ids.split(max(self.batches, default=1))]
        figures = figures_of(model, listen(model, batches, self.batches, self.text.label), self.batches)
        return {
            f"{name}/{self.text.label}": Metric(value, None, ids.numel(), "lower", protocol)
            for name, value in figures.items()
        }


@torch.no_grad()
def listen(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], sizes: Sequence[int], on: str
) -> dict[str, Use]:
    """Return the path of a routed MLP -> what it used of itself. on: what the batches are, for the bar."""
    uses = {path: Use(weight_parts(model, routed)) for path, routed in routed_mlps(model).items()}
    with listening(model, lambda path, routed, shown: uses[path].add(routed, shown, sizes)) as told:
        for batch in bar(batches, f"routing on {on}", "batch") if uses else ():
            told.append(counted_tokens(batch))
            feed(model, batch)
    return uses


def figures_of(model: PreTrainedModel, uses: Mapping[str, Use], sizes: Sequence[int]) -> dict[str, float]:
    """Return name -> value, without the text. sizes: numbers of sequences whose union counts."""
    blocks, found = block_modules(model), {}
    own = {
        path: next((use for name, use in uses.items() if name.startswith(f"{path}.")), None)
        for path in blocks
    }
    share = {
        path: 1.0 if use is None else float((torch.as_tensor(use.shares) * use.parts).sum()) / use.tokens
        for path, use in own.items()
    }
    found["active_share"] = sum(share.values()) / len(share)
    found |= {f"active_share_block_{place}": one for place, one in enumerate(share.values())}
    for size in sizes:
        parts = [1.0 if use is None else use.unions[size][0] / use.unions[size][1] for use in own.values()]
        found[f"union_share_of_{size}"] = sum(parts) / len(parts)
    found["gflops_per_token"] = 2 * macs_per_token(model, uses) / 2**30
    return found | histogram([use for use in own.values() if use is not None])


def histogram(uses: Sequence[Use]) -> dict[str, float]:
    """Return the share of experts in each tenth of use. Without a router all are used by all tokens."""
    rates = torch.cat([torch.as_tensor(use.uses) / use.tokens for use in uses]) if uses else torch.ones(1)
    places = (rates * TENTHS).long().clamp(max=TENTHS - 1)
    counts = torch.bincount(places, minlength=TENTHS) / len(places)
    return {
        f"experts_used_{10 * place}_to_{10 * (place + 1)}": float(one) for place, one in enumerate(counts)
    }


def weight_parts(model: nn.Module, routed: RoutedMLP) -> Tensor:
    """Return each matrix's part of an MLP's weights: a fused one has twice as many. [matrices]"""
    layers = [model.get_submodule(path) for path in (*routed.producers, routed.consumer)]
    sizes = torch.tensor([weight_of(layer).numel() for layer in layers]).double()
    return sizes / sizes.sum()


def macs_per_token(model: PreTrainedModel, uses: Mapping[str, Use]) -> float:
    """Return the multiplications per token in the linear layers of the blocks, routers included."""
    parts: dict[str, float] = {}
    for path, routed in routed_mlps(model).items():
        shares = torch.as_tensor(uses[path].shares) / uses[path].tokens
        if not routed.router.early and not routed.channels:
            shares[:-1] = 1.0  # the producers compute everything before the choice
        parts |= dict(zip((*routed.producers, routed.consumer), shares.tolist(), strict=True))
    total = 0.0
    for block in block_modules(model):
        for name, module in model.get_submodule(block).named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                total += weight.numel() * parts.get(f"{block}.{name}", 1.0)
    return total


@contextmanager
def listening(model: nn.Module, take: Callable[[str, RoutedMLP, Tensor], None]) -> Iterator[list[Tensor]]:
    """Call `take` after every routed MLP's pass. Yields a list that ends in what it shows [rows, tokens]."""
    rows: list[Tensor] = []

    def hook(path: str, routed: RoutedMLP) -> Callable:
        return lambda *_: take(path, routed, rows[-1])

    handles = [
        model.get_submodule(routed.consumer).register_forward_hook(hook(path, routed))
        for path, routed in routed_mlps(model).items()
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
