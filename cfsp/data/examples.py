"""Examples: what recovery trains on, as token ids and labels.

A `Source` yields passages; `Examples` cuts them to a window, packs or pads them, and holds some out.
A token counts if the loss uses its label; the loss ignores labels of -100.
"""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cfsp.checks import check_integer, check_number
from cfsp.data.sources import Prose, Source
from cfsp.data.tasks.base import Task
from cfsp.data.tasks.language_modelling import LanguageModelling
from cfsp.data.texts import Text
from cfsp.data.tokens import bos_token
from cfsp.data.windows import IGNORED, Collator, Example, count_passages, counts, pack_windows, single
from cfsp.machine.environment import is_main
from cfsp.options import Checked


@dataclass(frozen=True)
class Split:
    """The training and the held-out examples; unpacking gives these two lists.

    lost: source -> numbers of passages: `passages` read, `dropped` because no token that counts fits into
        the window, and `cut` because only some of these fit.
    """

    train: list[Example]
    held_out: list[Example]
    lost: Mapping[str, Mapping[str, int]]

    def __iter__(self) -> Iterator[list[Example]]:
        return iter((self.train, self.held_out))


class TrainingData(Checked, ABC):
    """The examples of a training.

    task: the task that they teach. window: tokens of an example, at most. held_out: number of examples held
        out for early stopping.
    """

    task: Task
    window: int
    held_out: int

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the sources in a record."""

    @property
    @abstractmethod
    def texts(self) -> list[Text]:
        """The texts that the sources read."""

    @abstractmethod
    def split(self, tokenizer: PreTrainedTokenizerBase) -> Split:
        """Make the training and the held-out examples. Raises ValueError if none are left to train on."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Example]], dict[str, Tensor]]:
        """Return the function that makes a batch of examples. -> input_ids [batch, tokens], labels, ..."""


@dataclass(frozen=True)
class Examples(TrainingData):
    """Windows of a mixture of sources, split into a training and a held-out part.

    sources: name -> source. weights: name -> fraction of the examples drawn from it; null: take all of
        every source. With weights no example is used twice: the mixture ends when a source ends.
    packing: join passages until a window is full, so that there is no padding; a passage then sees
        the ones before it. Otherwise a window holds one passage: prose continues in the next window,
        an instruction is cut off.
    held_out: number of examples held out for early stopping (0: none), drawn by seed.
    limit: most examples to train on; None: all. The seed decides which are left out.
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
            check_integer(f"data.{name}", getattr(self, name), least)
        if self.limit is not None:
            check_integer("data.limit", self.limit, least=1)
        if not self.sources:
            raise ValueError("data.sources is empty; expected at least one")
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
    def task(self) -> Task:
        return LanguageModelling()

    @property
    def labels(self) -> list[str]:
        """Names of the sources in a record."""
        return [source.label for source in self.sources.values()]

    @property
    def texts(self) -> list[Text]:
        """The texts that the sources read."""
        return [source.reads for source in self.sources.values()]

    def split(self, tokenizer: PreTrainedTokenizerBase) -> Split:
        """Make the training and the held-out examples, shuffled. Report lost passages on stderr.

        Raises:
            ValueError: no examples are left to train on, or the tokenizer lacks a pad or BOS token.
        """
        if not self.packing:
            self.padding(tokenizer)
        dice = random.Random(self.seed)
        pools, lost = {}, {}
        for name, source in self.sources.items():
            lost[name] = {"passages": 0, "dropped": 0, "cut": 0}
            pools[name] = list(self.windows(source, tokenizer, lost[name]))
            self.tell(source, lost[name])
            if not pools[name]:
                raise ValueError(
                    f"{source.label!r} has no example of window={self.window} with a token that counts; "
                    "expected more text or a shorter window"
                )
            dice.shuffle(pools[name])
        mixed = self.mix(pools, dice)
        if len(mixed) <= self.held_out:
            raise ValueError(
                f"held_out={self.held_out} leaves nothing of {len(mixed)} examples to train on; expected "
                f"less than {len(mixed)}, or more text"
            )
        return Split(mixed[self.held_out :][: self.limit], mixed[: self.held_out], lost)

    def tell(self, source: Source, lost: Mapping[str, int]) -> None:
        """Report on stderr how many passages do not fit into the window."""
        if is_main() and (lost["dropped"] or lost["cut"]):
            print(
                f"cfsp: {source.label}: of {lost['passages']:,} passages {lost['dropped']:,} have nothing "
                f"that counts within window={self.window} and are dropped, {lost['cut']:,} are cut",
                file=sys.stderr,
            )

    def mix(self, pools: Mapping[str, list[Example]], dice: random.Random) -> list[Example]:
        """Mix the sources by their weights into one list, in random order."""
        if self.weights is not None:
            whole = sum(self.weights.values())
            shares = {name: weight / whole for name, weight in self.weights.items() if weight}
            total = min(len(pools[name]) / share for name, share in shares.items())
            pools = {name: pools[name][: round(total * share)] for name, share in shares.items()}
            for name in (name for name, pool in pools.items() if not pool):
                raise ValueError(
                    f"weight of {name}={self.weights[name]}: that gives none of {round(total)} examples; "
                    "expected a larger weight, 0, or more text"
                )
        mixed = [example for pool in pools.values() for example in pool]
        dice.shuffle(mixed)
        return mixed

    def windows(
        self, source: Source, tokenizer: PreTrainedTokenizerBase, lost: dict[str, int]
    ) -> Iterator[Example]:
        """Yield examples of at most `window` tokens in which a token counts. lost: counters to increase."""
        start = [bos_token(tokenizer)] if self.bos else []
        length = self.window - len(start)
        first = 0 if start else 1  # nothing predicts the very first token
        passages = count_passages(source.passages(tokenizer), lost)
        if not (self.packing or isinstance(source, Prose)):
            passages = self.fitting(passages, length, first, lost)
        for example in pack_windows(passages, length) if self.packing else single(passages, length):
            if counts(example["labels"][first:]):
                yield {
                    "input_ids": start + example["input_ids"],
                    "labels": [IGNORED] * len(start) + example["labels"],
                }

    def fitting(
        self, passages: Iterator[Example], length: int, first: int, lost: dict[str, int]
    ) -> Iterator[Example]:
        """Cut each passage to a window. Skip passages of which no token that counts fits."""
        for passage in passages:
            if not counts(passage["labels"][first:length]):
                lost["dropped"] += 1
                continue
            lost["cut"] += counts(passage["labels"][length:])
            yield {key: ids[:length] for key, ids in passage.items()}

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the id of the pad token. Raises ValueError if there is none."""
        if self.pad_token is None:
            if not isinstance(found := tokenizer.pad_token_id, int):
                eos = f"pad_token={tokenizer.eos_token!r}" if tokenizer.eos_token else "a pad_token"
                raise ValueError(f"the tokenizer has no pad token; expected data.{eos} or data.packing=true")
            return found
        found = tokenizer.get_vocab().get(self.pad_token)
        if found is None:
            raise ValueError(f"pad_token={self.pad_token!r} is no token of this tokenizer")
        return found

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Return the function that makes a batch of examples."""
        return Collator(0 if self.packing else self.padding(tokenizer))
