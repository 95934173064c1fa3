"""Perplexity over fixed windows of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import bar
from cfsp.checks import check_integer
from cfsp.data.texts import Text
from cfsp.evaluation.base import Evaluator
from cfsp.evaluation.text_windows import TextWindows
from cfsp.records.outcomes import Outcomes, item_name
from cfsp.records.record import Metric


@dataclass(frozen=True)
class Perplexity(Evaluator):
    """exp of the mean negative log-likelihood per token; lower is better.

    The documents are joined, encoded as one stream and cut into windows of `window` tokens, as the
    pruning papers do. The value depends mostly on the window (LLaMA-7B on WikiText-2: 12.6 at 128
    tokens, 5.7 at 2048), so the record holds the protocol.

    window: one, or a list of them; each of a list gives a metric `perplexity/<text>@<window>`.
    stride: tokens between the starts of two windows; each window scores its last `stride` tokens,
        with at least window - stride before them. null: windows follow each other without overlap,
        and each one scores all tokens but its first.
    windows: measure only so many, spread evenly over the text, to make a sweep cheap. null: all.
    named: put the window into the metrics' names.
    bos: put the tokenizer's BOS token before every window (it counts towards `window`).
    """

    text: Text
    window: int | Sequence[int]
    batch_size: int
    stride: int | None = None
    windows: int | None = None
    bos: bool = False
    named: bool = False

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ValueError("perplexity window=[]: expected a whole number, or a list of them")
        if self.several and self.stride is not None:
            raise ValueError("perplexity stride: expected null where there are several windows")
        for window in self.lengths:
            check_integer("perplexity window", window, least=2)
        check_integer("perplexity batch_size", self.batch_size, least=1)
        if self.windows is not None:
            check_integer("perplexity windows", self.windows, least=1)
        if self.stride is not None and self.stride not in range(1, self.length):
            raise ValueError(f"perplexity stride={self.stride}: expected null or 1 to {self.length - 1}")

    @property
    def several(self) -> bool:
        return not isinstance(self.window, int)

    @property
    def lengths(self) -> Sequence[int]:
        """The windows, one or several."""
        return [self.window] if isinstance(self.window, int) else self.window

    @property
    def length(self) -> int:
        """The only window. Raises ValueError if there are several, which `parts` measures one by one."""
        (length,) = self.lengths
        return length

    def parts(self) -> list[Perplexity]:
        if not self.several:
            return [self]
        return [replace(self, window=window, named=True) for window in self.lengths]

    def reads(self) -> list[Text]:
        return [self.text]

    @cached_property
    def reader(self) -> TextWindows:
        """The reader of the text's windows, which keeps the tokens: both models are measured on the same."""
        return TextWindows("perplexity", self.text, self.length, self.windows, self.stride, self.bos)

    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return self.reader.causal_protocol(model, tokenizer)

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return `perplexity/<text>` and `bits_per_byte/<text>`, which does not depend on the vocabulary.

        stderr: by the delta method from the spread of the windows' means. n: scored tokens.
        Bytes per token are those of the whole text.

        Raises:
            ValueError: not a causal model, a window longer than its positions, or a text too short.
        """
        protocol = self.protocol(model, tokenizer)
        read, rows = self.reader.stream(tokenizer), self.reader.rows(tokenizer)
        first_scored = 1 if self.stride is None else self.length - self.stride
        losses = torch.cat(
            [
                token_losses(model, batch)[:, first_scored - 1 :]
                for batch in bar(rows.split(self.batch_size), f"perplexity on {self.text.label}", "batch")
            ]
        ).double()  # [windows, scored]
        mean = losses.mean().item()
        if not mean < 700:  # NaN, infinite, or too large for exp
            raise ValueError(
                f"perplexity/{self.text.label}: the loss is NaN or infinite; "
                "expected a model that is sound in its dtype (try model.dtype=float32)"
            )
        error = losses.mean(1).std().item() / math.sqrt(len(losses)) if len(losses) > 1 else None
        bits = len(read.ids) / read.size / math.log(2)  # per byte, for one nat per token

        def metric(value: float, slope: float, outcomes: Outcomes | None = None) -> Metric:
            stderr = None if error is None else error * slope
            return Metric(value, stderr, losses.numel(), "lower", protocol, outcomes=outcomes)

        perplexity = math.exp(mean)
        kept = Outcomes("nats", window_names(rows, first_scored), losses.mean(1).tolist())
        name = self.text.label + (f"@{self.window}" if self.named else "")
        return {
            f"perplexity/{name}": metric(perplexity, perplexity, kept),
            f"bits_per_byte/{name}": metric(mean * bits, bits),
        }


def window_names(rows: Tensor, first_scored: int) -> list[str]:
    """Return a name for each window, by its tokens and which of them are scored. rows: [windows, window]"""
    return [item_name([first_scored, *row]) for row in rows.tolist()]


@torch.no_grad()
def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the negative log-likelihood of every token but the first, in nats.

    [batch, tokens] -> [batch, tokens - 1]
    """
    ids = ids.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    # Row by row: the logits of a large vocabulary in float32 are the evaluation's peak memory.
    rows = [
        F.cross_entropy(row[:-1].float(), target[1:], reduction="none")
        for row, target in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows).cpu()
