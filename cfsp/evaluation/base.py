"""The base classes of evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.texts import Text
from cfsp.options import Checked
from cfsp.records.record import Metric


class Evaluator(Checked, ABC):
    """Measures a model. Two metrics are compared only if their protocols agree."""

    def parts(self) -> Sequence[Evaluator]:
        """Return the evaluators that this one consists of; a killed run repeats only the unfinished one."""
        return [self]

    def reads(self) -> Sequence[Text]:
        """Return the texts that it measures on; calibration and recovery should read none of them."""
        return []

    def depends_on(self) -> Sequence[object]:
        """Return the parts whose code its metrics depend on, besides what that code imports."""
        return [self]

    @abstractmethod
    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return everything besides the weights that the result depends on, as JSON data.

        Raises ValueError if the model cannot be measured; called before anything costly.
        """

    @abstractmethod
    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Return metrics. Keys are `what/on-what`, for example `perplexity/wikitext2:test`."""

    def remarks(self, metrics: Mapping[str, Metric], model: PreTrainedModel) -> Sequence[str]:
        """Return lines about its metrics that a user has to know to read them, such as cut answers."""
        return []


class PairedEvaluator(Evaluator):
    """Measures two models side by side, for numbers that depend on the moment, such as times."""

    @abstractmethod
    def run_pair(
        self, dense: PreTrainedModel, pruned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Metric], dict[str, Metric]]:
        """Measure both models in turns; return the same keys for both."""

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Measure a model against itself; how far its ratios are from 1 shows the noise."""
        return self.run_pair(model, model, tokenizer)[0]


class Sampler(Checked, ABC):
    """Generates text with a model, for people to read."""

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the model cannot continue the prompts; called before anything costly."""

    @abstractmethod
    def say(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Return prompt -> the model's continuation."""
