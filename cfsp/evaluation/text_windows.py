"""Text windows: the windows of a text's tokens that an evaluator reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.texts import Text
from cfsp.data.tokens import TokenStream, bos_token, token_stream
from cfsp.model.blocks import check_positions, is_causal


@dataclass(frozen=True)
class TextWindows:
    """Windows of equal length, cut from the text's tokens as one stream.

    kind: the evaluator's name, in errors. window, windows, stride, bos: as in `Perplexity`.
    """

    kind: str
    text: Text
    window: int
    windows: int | None = None
    stride: int | None = None
    bos: bool = False

    @property
    def length(self) -> int:
        """Tokens of the text in each window."""
        return self.window - self.bos

    @property
    def step(self) -> int:
        """Tokens between the starts of two windows."""
        return self.stride or self.length

    @cached_property
    def stream(self) -> Callable[[PreTrainedTokenizerBase], TokenStream]:
        """A cached reader, so that both models are measured on the same text even if its file changes."""
        return lru_cache(maxsize=1)(partial(token_stream, self.text))

    def causal_protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what the figures of a causal language model on these windows depend on.

        Raises ValueError if the model cannot read them, or the text has too few.
        """
        if not is_causal(model):
            raise ValueError(
                f"{self.kind} needs a causal language model, not {type(model).__name__} of type "
                f"{model.config.model_type}; expected a decoder with model.head=causal_lm, or evaluation=[]"
            )
        check_positions(model, self.window, f"{self.kind} window")
        self.check(tokenizer)
        # Only if set, so that the protocol of the whole text stays equal to that of older records.
        part = {} if self.windows is None else {"windows": self.windows}
        read = self.stream(tokenizer)
        return part | {
            "measure": self.kind,
            "text": self.text.label,
            "text_sha256": read.sha256[:16],
            "tokens_sha256": hashlib.sha256(read.ids.numpy().data).hexdigest()[:16],
            "window": self.window,
            "stride": self.step,
            "bos": self.bos,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "device": model.device.type,
        }

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the text has too few windows, or `bos` is set and the tokenizer has none."""
        if self.bos:
            bos_token(tokenizer)
        tokens = len(self.stream(tokenizer).ids)
        if tokens < self.length:
            raise ValueError(
                f"{self.kind}: text {self.text.label!r} has {tokens} tokens; expected at least "
                f"window={self.window}"
            )
        count = (tokens - self.length) // self.step + 1
        if self.windows is not None and self.windows > count:
            raise ValueError(
                f"{self.kind} windows={self.windows}: text {self.text.label!r} has {count} of "
                f"window={self.window}; expected at most that"
            )

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """Return the windows, or so many of them, spread evenly over the text. [windows, window]

        Tokens after the last whole window are dropped. Raises ValueError as `check` does.
        """
        self.check(tokenizer)
        rows = self.stream(tokenizer).ids.unfold(0, self.length, self.step)
        if self.windows is not None:
            rows = rows[torch.arange(self.windows) * len(rows) // self.windows]
        if self.bos:
            rows = torch.cat([torch.full((len(rows), 1), bos_token(tokenizer)), rows], dim=1)
        return rows
