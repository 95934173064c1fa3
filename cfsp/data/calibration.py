"""Calibration: text -> token batches, the same ones for the same seed."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.data.readings import name_documents, reading
from cfsp.data.texts import Text
from cfsp.data.tokens import bos_token, encode, name_tokenizer, token_stream
from cfsp.machine.memory import physical_memory
from cfsp.model.blocks import check_positions
from cfsp.options import Checked

Batch = dict[str, Tensor]

BYTES_PER_TOKEN = 24
"""Memory while windows are drawn: a list entry, a token id and a mask entry, 8 bytes each."""


class Calibration(Checked, ABC):
    """The token batches that statistics are measured on."""

    text: Text
    samples: int
    seqlen: int
    batch_size: int
    seed: int

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each batch."""
        return [
            min(self.batch_size, self.samples - first) for first in range(0, self.samples, self.batch_size)
        ]

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if no batches can be made for this model."""
        check_positions(model, self.seqlen, "calibration seqlen")

    @property
    def label(self) -> str:
        """What people call the text that statistics are measured on."""
        return self.text.label

    @abstractmethod
    def batches(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
    ) -> list[Batch]:
        """Return batches, the same for the same seed. Each: input_ids, attention_mask [batch, tokens]

        With `counted` [batch, tokens], if statistics are of some tokens alone. model: the dense model, which
        only a calibration that it writes itself needs.
        """

    def reads(self, tokenizer: PreTrainedTokenizerBase, batches: Sequence[Batch]) -> list[Text]:
        """Return the texts that the batches come from, so that overlaps with a test are found."""
        return [self.text]


@dataclass(frozen=True)
class RandomWindows(Calibration):
    """`samples` windows of `seqlen` tokens from random places of a text.

    within_documents: draw a document that is long enough, then a window inside it (how the C4
    samples of the pruning papers are made); otherwise windows come from the joined text.
    bos: begin every window with the tokenizer's BOS token, which counts towards `seqlen`.
    """

    text: Text
    samples: int
    seqlen: int
    batch_size: int
    seed: int
    within_documents: bool = False
    bos: bool = False

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("seqlen", 2), ("batch_size", 1), ("seed", 0)):
            check_integer(f"calibration {name}", getattr(self, name), least)
        tokens, memory = self.samples * self.seqlen, physical_memory()
        if tokens * BYTES_PER_TOKEN > memory:
            raise ValueError(
                f"calibration samples={self.samples} of seqlen={self.seqlen}: {tokens:,} tokens take "
                f"{tokens * BYTES_PER_TOKEN / 2**30:,.1f} GiB, and the machine has {memory / 2**30:,.1f}; "
                f"expected at most samples={memory // BYTES_PER_TOKEN // self.seqlen}"
            )

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
    ) -> list[Batch]:
        """Draw the windows. Each batch: input_ids, attention_mask [batch, tokens]

        Raises:
            ValueError: the text (or every document) is shorter than one window, or there is no BOS token.
        """
        ids = torch.tensor([*self.windows(tokenizer)])
        return [
            {"input_ids": chunk, "attention_mask": torch.ones_like(chunk)}
            for chunk in ids.split(self.batch_size)
        ]

    def windows(self, tokenizer: PreTrainedTokenizerBase, asked: str = "seqlen") -> Iterator[list[int]]:
        """Yield the token ids of each window. asked: the option that sets their length, for errors."""
        dice = random.Random(self.seed)
        draw = self._from_documents if self.within_documents else self._from_joined
        start = [bos_token(tokenizer)] if self.bos else []
        for window in draw(tokenizer, dice, self.seqlen - len(start), asked):
            yield start + window

    def _from_joined(
        self, tokenizer: PreTrainedTokenizerBase, dice: random.Random, length: int, asked: str
    ) -> Iterator[list[int]]:
        ids = token_stream(self.text, tokenizer).ids
        if len(ids) < length:
            raise ValueError(
                f"text {self.text.label!r} has {len(ids)} tokens, less than one window of "
                f"{asked}={self.seqlen}; expected more text or a shorter {asked}"
            )
        for _ in range(self.samples):
            start = dice.randint(0, len(ids) - length)
            yield ids[start : start + length].tolist()

    def _from_documents(
        self, tokenizer: PreTrainedTokenizerBase, dice: random.Random, length: int, asked: str
    ) -> Iterator[list[int]]:
        documents = self.text.written(tokenizer)
        kept = reading(
            "drawn",
            self.text.label,
            [
                name_documents(documents),
                name_tokenizer(tokenizer),
                f"{self.samples} of {length}, seed {self.seed}",
            ],
            # Documents are tokenised as they are drawn: most texts have far more than are needed.
            lambda: {"ids": torch.tensor([*self._draw(documents, tokenizer, dice, length, asked)])},
        )
        yield from kept["ids"].tolist()

    def _draw(
        self,
        documents: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        dice: random.Random,
        length: int,
        asked: str,
    ) -> Iterator[list[int]]:
        drawn = 0
        while drawn < self.samples:
            before = drawn
            for index in dice.sample(range(len(documents)), len(documents)):
                ids = encode(tokenizer, documents[index])
                if len(ids) >= length:
                    start = dice.randint(0, len(ids) - length)
                    yield ids[start : start + length]
                    drawn += 1
                if drawn == self.samples:
                    return
            if drawn == before:
                raise ValueError(
                    f"no document of text {self.text.label!r} has {asked}={self.seqlen} tokens; "
                    f"expected longer documents, a shorter {asked} or within_documents=false"
                )
