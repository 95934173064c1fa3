"""What an evaluator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.record import Metric


class Evaluator(ABC):
    """Measures a model. Evaluators are compared only where their protocols agree."""

    @abstractmethod
    def protocol(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that the number depends on besides the weights, as JSON data.

        Raises ValueError if this model cannot be measured so; nothing costly runs before.
        """

    @abstractmethod
    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Metric]:
        """Measure. Keys are `what/on-what`, for example `perplexity/wikitext2:test`."""
