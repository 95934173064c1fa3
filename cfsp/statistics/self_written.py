"""Self-written calibration: the dense model writes the text that statistics are measured on."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.bars import task
from cfsp.checks import check_integer, check_number
from cfsp.data.calibration import Batch, Calibration, RandomWindows
from cfsp.data.chats import conversation_tokens, has_template
from cfsp.data.readings import CACHE
from cfsp.data.texts import Text
from cfsp.machine.environment import is_main
from cfsp.model.blocks import is_causal
from cfsp.model.model_inputs import COUNTED
from cfsp.passes.modes import evaluating
from cfsp.passes.writing import Dice, continued, ends_of, padded
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest, fingerprint
from cfsp.storage.schema import parse

Ids = list[int]


@dataclass(frozen=True)
class WrittenSample:
    """One prompt and what the model wrote after it, as text and as tokens, the end of the text included."""

    prompt: str
    answer: str
    prompt_tokens: Ids
    answer_tokens: Ids


@dataclass(frozen=True)
class SelfWrittenText(Text):
    """What a model wrote. name: its label. said: one document per answer."""

    name: str
    said: list[str]

    @property
    def label(self) -> str:
        return self.name

    def documents(self) -> list[str]:
        return self.said


@dataclass(frozen=True)
class SelfWritten(Calibration):
    """`samples` texts that the dense model writes itself. Statistics are of the tokens that it wrote.

    It continues passages of a text, or answers instructions. Attention sees the prompt, but no statistic
    counts it. After Ji et al. 2024 (arXiv:2410.17711), whose models continue prefixes of texts, and Wang et
    al. 2025 (RESP, arXiv:2512.02185), whose models answer questions and whose loss is of the answers alone.

    Differs from both: no text is left out for its perplexity, and none is written again as units go.

    text: a text whose passages are continued, or instructions (`Conversations`), whose answers are not read.
    seqlen: tokens of a sample, prompt and answer. An answer that ends early is shorter.
    prompt_tokens: tokens of a passage; of an instruction at most: longer ones are left out.
    temperature: the model's distribution is sampled at it; 0: the most probable token.
    chat: write instructions by the chat template; "auto": if the tokenizer has one.
    within_documents, bos: how passages are drawn, as in `RandomWindows`.

    The cache keeps each batch as JSON lines; a killed run goes on with the next one. Its name depends on the
    model, the prompts, the options and the code.
    """

    text: Text
    samples: int
    seqlen: int
    prompt_tokens: int
    batch_size: int
    seed: int
    temperature: float = 1.0
    chat: bool | Literal["auto"] = "auto"
    within_documents: bool = False
    bos: bool = False

    def __post_init__(self) -> None:
        check_integer("calibration prompt_tokens", self.prompt_tokens, least=2)
        _ = self.passages  # it checks the rest
        check_number("calibration temperature", self.temperature, least=0)
        if self.prompt_tokens >= self.seqlen:
            raise ValueError(
                f"calibration prompt_tokens={self.prompt_tokens} of seqlen={self.seqlen} leaves no new "
                "tokens; expected fewer tokens of a prompt, or a longer seqlen"
            )
        if self.chat is True and not self.text.asks:
            raise ValueError(
                f"calibration chat=true: text {self.text.label!r} asks nothing; expected instructions, or "
                "chat=auto"
            )

    @property
    def label(self) -> str:
        return f"self:{self.text.label}"

    @property
    def passages(self) -> RandomWindows:
        """The windows that are continued."""
        size = min(self.prompt_tokens, self.seqlen)
        drawn = (self.within_documents, self.bos)
        return RandomWindows(self.text, self.samples, size, self.batch_size, self.seed, *drawn)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().check(model, tokenizer)
        if not is_causal(model):
            raise ValueError(
                f"calibration=self: a {type(model).__name__} cannot continue a text; expected a causal "
                "language model, or another calibration"
            )
        if self.chat is True and not has_template(tokenizer):
            raise ValueError("calibration chat=true: this tokenizer has no chat template; expected chat=auto")

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
    ) -> list[Batch]:
        """Write the samples. Each batch: input_ids, attention_mask, counted [batch, tokens]

        Raises:
            ValueError: no model, one that cannot write, or too few prompts.
        """
        if model is None:
            raise ValueError("the model writes this calibration itself; expected batches(tokenizer, model)")
        self.check(model, tokenizer)
        prompts = self.prompts(tokenizer)
        size = self.batch_size
        parts = [prompts[first : first + size] for first in range(0, len(prompts), size)]
        return [batch_of(rows) for rows in self.written(model, tokenizer, parts)]

    def reads(self, tokenizer: PreTrainedTokenizerBase, batches: Sequence[Batch]) -> list[Text]:
        """Return the prompts' text, and what the model wrote: it may know a test by heart."""
        said = [
            tokens_as_text(tokenizer, ids[counted.bool()].tolist())
            for batch in batches
            for ids, counted in zip(batch["input_ids"], batch[COUNTED], strict=True)
        ]
        return [self.text, SelfWrittenText(self.label, said)]

    def prompts(self, tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
        """Draw the prompts, as token ids. Raises ValueError if there are too few."""
        if not self.text.asks:
            return [*self.passages.windows(tokenizer, "prompt_tokens")]
        template = self.chat is not False and has_template(tokenizer)
        asked = self.text.questions(template)
        drawn, long = [], 0
        for turns in random.Random(self.seed).sample(asked, len(asked)):
            ids = conversation_tokens(tokenizer, turns, template)
            long += len(ids) > self.prompt_tokens
            drawn += [ids] if 0 < len(ids) <= self.prompt_tokens else []
            if len(drawn) == self.samples:
                break
        told = f"{long:,} are longer than prompt_tokens={self.prompt_tokens}"
        if len(drawn) < self.samples:
            raise ValueError(
                f"text {self.text.label!r} has {len(drawn):,} prompts, less than calibration "
                f"samples={self.samples}; {told}; expected fewer samples or a larger prompt_tokens"
            )
        if long and is_main():
            print(f"cfsp: {self.text.label}: {told} and left out", file=sys.stderr)
        return drawn

    def written(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Sequence[Sequence[Ids]]
    ) -> list[list[WrittenSample]]:
        """Return what the model writes after each prompt, batch by batch; from the cache if it is there."""
        cache = CACHE.get()
        folder = f"written/{self.origin(model, tokenizer, parts)}" if cache.folder else ""
        found: list[list[WrittenSample]] = []
        work = task("write calibration", "sample", self.samples)
        with cache.alone(folder), evaluating(model), work as shown:
            for number, prompts in enumerate(parts):
                name = f"{folder}/{number:04}.jsonl"
                rows = cache.get(name, partial(read_rows, prompts))
                if rows is None:
                    rows = self.write(model, tokenizer, prompts, number * self.batch_size)
                    cache.describe(folder)
                    cache.put(name, partial(write_rows, rows))
                found.append(rows)
                shown.advance(len(prompts))
        return found

    def origin(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Sequence[Sequence[Ids]]
    ) -> str:
        """Return a hash of all that the answers depend on."""
        return digest(
            {
                "model": fingerprint(model),
                "attention": model.config._attn_implementation,
                "device": model.device.type,
                "prompts": parts,
                "ends": sorted(ends_of(model, tokenizer)),
                "options": [self.seqlen - self.prompt_tokens, self.temperature, self.seed],
                "code": code_of(SelfWritten),
            }
        )

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Ids],
        first: int,
    ) -> list[WrittenSample]:
        """Let the model continue some prompts. first: the index of the first one, for its dice."""
        names = [f"{self.seed} {first + row}".encode() for row in range(len(prompts))]
        seeds = [int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in names]
        dice = Dice(seeds, self.temperature) if self.temperature else None
        rows = continued(model, tokenizer, prompts, self.seqlen - self.prompt_tokens, dice=dice)
        ends, made = ends_of(model, tokenizer), []
        for prompt, row in zip(prompts, rows, strict=True):
            length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            said = (tokens_as_text(tokenizer, prompt), tokens_as_text(tokenizer, row[:length]))
            made.append(WrittenSample(*said, [*prompt], row[:length]))
        return made


def batch_of(rows: Sequence[WrittenSample]) -> Batch:
    """Return a batch, padded on the right. -> input_ids, attention_mask, counted, [batch, tokens] each"""
    ids, mask = padded([row.prompt_tokens + row.answer_tokens for row in rows], left=False)
    begun = torch.tensor([len(row.prompt_tokens) for row in rows])
    counted = mask * (torch.arange(ids.shape[1]) >= begun[:, None])
    return {"input_ids": ids, "attention_mask": mask, COUNTED: counted}


def tokens_as_text(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """Return tokens as text, special ones included."""
    text = tokenizer.decode(ids)
    assert isinstance(text, str), "one row of tokens is one text"
    return text


def read_rows(prompts: Sequence[Ids], path: Path) -> list[WrittenSample]:
    """Read a file of `write_rows`. Raises ValueError unless it is of these prompts."""
    rows = [parse(WrittenSample, json.loads(line)) for line in path.read_text("utf-8").split("\n") if line]
    if [row.prompt_tokens for row in rows] != [[*prompt] for prompt in prompts]:
        raise ValueError("the prompts are others")
    return rows


def write_rows(rows: Sequence[WrittenSample], path: Path) -> None:
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")
