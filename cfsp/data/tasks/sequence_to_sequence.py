"""Sequence to sequence: write a target for a source, such as the summary of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.data.labelled_rows import LabelledRows, text_in
from cfsp.data.tasks.base import Encoded, LabelledTask, Score, TaskCollator
from cfsp.data.tasks.metrics import mean
from cfsp.data.tasks.rouge import ROUGE, rouge
from cfsp.model.blocks import check_positions
from cfsp.model.generating_as import generating_as

IGNORED = -100
"""The label of padding."""

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
"""What a model's generation config says about tokens. All else is an option of the task."""


@dataclass(frozen=True)
class Pair:
    """A source, and the target that a person wrote for it."""

    source: str
    target: str


@dataclass(frozen=True)
class Written:
    """What the model wrote. tokens: without padding and special tokens."""

    text: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(LabelledTask):
    """Write the target of a source (CNN/DailyMail summaries: See et al. 2017, arXiv:1704.04368).

    The loss is that of the target's tokens, each predicted from the source and the earlier ones. The metrics
    compare what the model writes without seeing the target.

    source, target: names of the columns. prefix: text before each source, such as T5's "summarize: ".
    target_window: tokens of a target, at most, in training and when the model writes.
    metrics: any of rouge1, rouge2, rougeL and rougeLsum (F-measures, Lin 2004), and length: the tokens that
        the model writes, which cost time (so fewer count as better) and say nothing of quality.
    stemmer: whether ROUGE compares words by their Porter stems.
    beams: of the search; 1 is greedy. shortest: tokens that the model writes, at least.
    length_penalty: power of the length by which a beam's log-probability is divided. no_repeat: size of
        word sequences (in tokens) that may not occur twice in what the model writes; 0: all may.
    """

    head = "sequence_to_sequence"
    options: ClassVar[Mapping[str, Any]] = {"use_cache": False}
    one_stack = False

    source: str
    target: str
    prefix: str
    target_window: int
    metrics: Sequence[str]
    stemmer: bool
    beams: int
    shortest: int
    length_penalty: float
    no_repeat: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("target_window", 2), ("beams", 1), ("shortest", 0), ("no_repeat", 0)):
            check_integer(f"task {name}", getattr(self, name), least)
        check_number("task length_penalty", self.length_penalty, least=-100, most=100)
        if not self.metrics:
            raise ValueError(f"task.metrics=[]: expected one or more of {', '.join((*ROUGE, 'length'))}")
        for name in self.metrics:
            check_choice("task.metrics", name, (*ROUGE, "length"))
        if self.shortest >= self.target_window:
            raise ValueError(
                f"task.shortest={self.shortest} beside task.target_window={self.target_window}: expected less"
            )

    @property
    def ending(self) -> str:
        return "ForConditionalGeneration"

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        super().check(model, tokenizer, what)
        check_positions(model, self.target_window, "task.target_window")
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(model.config, name, None) is None:
                raise ValueError(
                    f"task {self.name}: the model's config has no {name}, with which a target begins; "
                    "expected one in config.json"
                )

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "prefix": self.prefix,
            "target_window": self.target_window,
            "stemmer": self.stemmer,
            "beams": self.beams,
            "shortest": self.shortest,
            "length_penalty": self.length_penalty,
            "no_repeat": self.no_repeat,
        }

    def items(self, rows: LabelledRows) -> list[Pair]:
        found = []
        for where, row in rows.rows():
            pair = Pair(*(text_in(where, row, column) for column in (self.source, self.target)))
            for column, text in ((self.source, pair.source), (self.target, pair.target)):
                if not text.strip():
                    raise ValueError(f"{where}: {column!r} is empty; expected text")
            found.append(pair)
        return found

    def encode(self, tokenizer: PreTrainedTokenizerBase, items: Sequence[Pair]) -> Encoded:
        sources = [f"{self.prefix}{item.source}" for item in items]
        targets = [item.target for item in items]
        read = tokenizer(sources, truncation=True, max_length=self.window, verbose=False)
        written = tokenizer(
            text_target=targets, truncation=True, max_length=self.target_window, verbose=False
        )
        examples = [
            {"input_ids": [*ids], "labels": [*labels]}
            for ids, labels in zip(read["input_ids"], written["input_ids"], strict=True)
        ]
        halves = zip(read.encodings or [], written.encodings or [], strict=True)
        cut = sum(bool(one.overflowing or other.overflowing) for one, other in halves)
        return Encoded(examples, [*range(len(items))], [tokenizer] * len(items), cut=cut)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> PairCollator:
        return PairCollator(self.padding(tokenizer), tokenizer.pad_token_type_id)

    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        counts = inputs["labels"] != IGNORED  # [batch, tokens of the target]
        return output.logits[counts], inputs["labels"][counts]

    def respond(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what the model writes for each row of a batch, padded. Each [tokens]

        Raises ValueError if a logit is NaN.
        """
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        checked = LogitsProcessorList([NoNaN(self.not_finite)])
        with generating_as(model, self.generation_config(model)):
            return [*model.generate(**given, logits_processor=checked).cpu()]  # pyright: ignore[reportCallIssue]  # a mixin's

    def generation_config(self, model: PreTrainedModel) -> GenerationConfig:
        """Return how the model writes: its own special tokens, and the options of the task."""
        given = model.generation_config
        kept = {name: getattr(given, name, None) for name in (*TOKENS, *FORCED)}
        for name in TOKENS:
            kept[name] = getattr(model.config, name, None) if kept[name] is None else kept[name]
        return GenerationConfig(
            **kept,
            do_sample=False,
            num_beams=self.beams,
            max_new_tokens=self.target_window,
            min_new_tokens=self.shortest or None,
            length_penalty=self.length_penalty,
            no_repeat_ngram_size=self.no_repeat,
            use_cache=True,
        )

    def answers(self, outputs: Sequence[Any], encoded: Encoded, items: Sequence[Pair]) -> list[Written]:
        said = []
        for ids, tokenizer in zip(outputs, encoded.about, strict=True):
            special = {*tokenizer.all_special_ids}
            text = tokenizer.decode(ids, skip_special_tokens=True)
            said.append(Written(text, sum(one not in special for one in ids.tolist())))
        return said

    def scores(self, answers: Sequence[Written], items: Sequence[Pair]) -> dict[str, Score]:
        names = [name for name in self.metrics if name != "length"]
        said, right = [one.text for one in answers], [[item.target] for item in items]
        found = {name: mean(values) for name, values in rouge(names, right, said, self.stemmer).items()}
        lengths = replace(mean([float(one.tokens) for one in answers]), better="lower")
        return {name: lengths if name == "length" else found[name] for name in self.metrics}


@dataclass(frozen=True)
class PairCollator(TaskCollator):
    """Pads sources and targets on the right. The model makes its decoder's input of the labels."""

    def labels(self, examples: Sequence[Mapping[str, list[Any]]]) -> Tensor:
        """Return the targets' tokens, -100 for padding. [batch, tokens of the longest target]"""
        length = max(len(example["labels"]) for example in examples)
        return torch.tensor(
            [[*one["labels"], *[IGNORED] * (length - len(one["labels"]))] for one in examples]
        )


class NoNaN(LogitsProcessor):
    """Raises ValueError at the first NaN among the logits: the search would silently choose any token."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits as they are. [batch * beams, choices]"""
        if scores.isnan().any():
            raise ValueError(self.message)
        return scores
