"""What an evaluator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.texts import Text
from cfsp.options import Checked
from cfsp.records.record import Metric


class Evaluator(Checked, ABC):
    """Measures a model. Evaluators are compared only where their protocols agree."""

    def parts(self) -> Sequence[Evaluator]:
        """The measurements that this one consists of; a run that is killed loses the unfinished one."""
        return [self]

    def reads(self) -> Sequence[Text]:
        """Texts that it measures on, which should be none of those that a model is made with."""
        return []

    @abstractmethod
    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that the number depends on besides the weights, as JSON data.

        Raises ValueError if this model cannot be measured so; nothing costly runs before.
        """

    @abstractmethod
    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Measure. Keys are `what/on-what`, for example `perplexity/wikitext2:test`."""


class PairedEvaluator(Evaluator):
    """Measures two models side by side, because its numbers mean nothing apart: times, for example."""

    @abstractmethod
    def run_pair(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """Measure both, interleaved; the same keys for both."""

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """One model against itself: what it costs, and how far from 1 its ratios stray."""
        return self.run_pair(model, model, tokenizer)[0]


class Sampler(Checked, ABC):
    """Lets a model speak, for people to read."""

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if this model cannot go on after these prompts; nothing costly runs before."""

    @abstractmethod
    def say(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Prompt -> how the model goes on."""
