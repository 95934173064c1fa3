"""Examples: what recovery trains on, as token ids and labels.

A `Source` yields passages; `Examples` cuts them to a window, packs or pads them, and holds some back.
Labels of -100 do not count.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cfsp.calibration import bos_token
from cfsp.checks import check_bool, check_integer, check_number
from cfsp.instructions import Conversations
from cfsp.texts import Text

IGNORED = -100
Example = dict[str, list[int]]


class Source(ABC):
    """Passages to learn from."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What a record calls it."""

    @abstractmethod
    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        """`input_ids` and `labels` of every passage, whole, without BOS."""


@dataclass(frozen=True)
class Prose(Source):
    """Documents of a text, each ended by EOS; every token counts."""

    text: Text

    @property
    def label(self) -> str:
        return self.text.label

    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        for document in self.text.documents():
            ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"] + end
            yield {"input_ids": ids, "labels": list(ids)}


@dataclass(frozen=True)
class Instructions(Source):
    """Questions and answers; only the answers count, unless answers_only is false."""

    conversations: Conversations
    answers_only: bool = True

    def __post_init__(self) -> None:
        check_bool("answers_only", self.answers_only)

    @property
    def label(self) -> str:
        return self.conversations.label

    def passages(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        if not tokenizer.is_fast:
            raise ValueError("instructions need a fast tokenizer, which says where in the text a token lies")
        for text, answers in self.conversations.rendered(tokenizer):
            coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids = coded["input_ids"]
            counted = [
                # A token that straddles the first letter of the answer is one the model has to say.
                not self.answers_only or any(start < last and end > first for first, last in answers)
                for start, end in coded["offset_mapping"]
            ]
            labels = [token if count else IGNORED for token, count in zip(ids, counted, strict=True)]
            yield {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class Examples:
    """Windows of a mixture of sources, split into a training and a held-out part.

    sources: name -> source. weights: name -> share of the examples drawn from it; null: take all of
        every source. With weights no example is used twice: the mixture ends where a source ends.
    packing: join passages until a window is full, so that no token is padding; a passage then sees
        the ones before it. Otherwise a passage is a window: prose goes on in the next one, an
        instruction is cut off.
    held_out: examples to hold back for early stopping (0: none), drawn by seed.
    limit: train on so many of the others at most; None: on all. What is left out depends on the seed.
    bos: begin every example with BOS. pad_token: null is the tokenizer's own.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float] | None
    window: int
    packing: bool
    held_out: int
    seed: int
    bos: bool = False
    pad_token: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("held_out", 0), ("seed", 0)):
            check_integer(f"recovery {name}", getattr(self, name), least)
        if self.limit is not None:
            check_integer("recovery limit", self.limit, least=1)
        check_bool("packing", self.packing)
        check_bool("bos", self.bos)
        if not self.sources:
            raise ValueError("recovery.data.sources is empty; expected at least one")
        if self.weights is not None:
            if set(self.weights) != set(self.sources):
                raise ValueError(
                    f"weights of {sorted(self.weights)}: expected one for each of {sorted(self.sources)}"
                )
            for name, weight in self.weights.items():
                check_number(f"weight of {name}", weight, least=0)
            if not sum(self.weights.values()):
                raise ValueError("weights are all 0; expected one above 0")

    @property
    def labels(self) -> list[str]:
        """What a record calls the sources."""
        return [source.label for source in self.sources.values()]

    def split(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], list[Example]]:
        """The training and the held-out examples, shuffled.

        Raises:
            ValueError: no examples are left to train on, or there is no token to pad or to begin with.
        """
        if not self.packing:
            self.padding(tokenizer)
        dice = random.Random(self.seed)
        pools = {}
        for name, source in self.sources.items():
            pools[name] = list(self.windows(source, tokenizer))
            if not pools[name]:
                raise ValueError(
                    f"{source.label!r} has not one example of window={self.window} with a token that counts; "
                    "expected more text or a shorter window"
                )
            dice.shuffle(pools[name])
        mixed = self.mix(pools, dice)
        if len(mixed) <= self.held_out:
            raise ValueError(
                f"held_out={self.held_out} leaves nothing of {len(mixed)} examples to train on; expected "
                f"less than {len(mixed)}, or more text"
            )
        return mixed[self.held_out :][: self.limit], mixed[: self.held_out]

    def mix(self, pools: Mapping[str, list[Example]], dice: random.Random) -> list[Example]:
        """One list, in random order."""
        if self.weights is not None:
            whole = sum(self.weights.values())
            shares = {name: weight / whole for name, weight in self.weights.items() if weight}
            total = min(len(pools[name]) / share for name, share in shares.items())
            pools = {name: pools[name][: round(total * share)] for name, share in shares.items()}
        mixed = [example for pool in pools.values() for example in pool]
        dice.shuffle(mixed)
        return mixed

    def windows(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
        """Examples of at most `window` tokens with something that counts."""
        start = [bos_token(tokenizer)] if self.bos else []
        length = self.window - len(start)
        passages = tqdm(source.passages(tokenizer), f"read {source.label}", unit="passage", disable=None)
        for example in packed(passages, length) if self.packing else self.single(passages, source, length):
            if any(label != IGNORED for label in example["labels"][0 if start else 1 :]):
                yield {
                    "input_ids": start + example["input_ids"],
                    "labels": [IGNORED] * len(start) + example["labels"],
                }

    def single(self, passages: Iterator[Example], source: Source, length: int) -> Iterator[Example]:
        """One passage to a window, or to several of them where it is prose."""
        for passage in passages:
            size = len(passage["input_ids"]) if isinstance(source, Prose) else length
            for first in range(0, size, length):
                yield {key: ids[first : first + length] for key, ids in passage.items()}

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The id to pad with. Raises ValueError if there is none."""
        if self.pad_token is None:
            if tokenizer.pad_token_id is None:
                eos = f"pad_token={tokenizer.eos_token!r}" if tokenizer.eos_token else "a pad_token"
                raise ValueError(
                    f"the tokenizer has no pad token; expected recovery.data.{eos} or "
                    "recovery.data.packing=true"
                )
            return tokenizer.pad_token_id
        found = tokenizer.get_vocab().get(self.pad_token)
        if found is None:
            raise ValueError(f"pad_token={self.pad_token!r} is no token of this tokenizer")
        return found

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """What makes a batch of examples."""
        return Collator(0 if self.packing else self.padding(tokenizer))


def packed(passages: Iterator[Example], length: int) -> Iterator[Example]:
    """Full windows of passages, one after the other; the rest at the end is left out."""
    rest: Example = {"input_ids": [], "labels": []}
    for passage in passages:
        rest = {key: rest[key] + passage[key] for key in rest}
        whole = len(rest["input_ids"]) // length * length
        for first in range(0, whole, length):
            yield {key: ids[first : first + length] for key, ids in rest.items()}
        rest = {key: ids[whole:] for key, ids in rest.items()}


@dataclass(frozen=True)
class Collator:
    """Pads on the right. -> input_ids, attention_mask, labels [batch, tokens]"""

    pad: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        length = max(len(example["input_ids"]) for example in examples)

        def rows(key: str, filler: int) -> Tensor:
            return torch.tensor(
                [example[key] + [filler] * (length - len(example[key])) for example in examples]
            )

        sizes = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "input_ids": rows("input_ids", self.pad),
            "attention_mask": (torch.arange(length) < sizes[:, None]).long(),
            "labels": rows("labels", IGNORED),
        }
