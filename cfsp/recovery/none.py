"""No recovery: the model stays as surgery left it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.recovery.base import Recovered, Recovery
from cfsp.training.base import Setting


@dataclass(frozen=True)
class NoRecovery(Recovery):
    """Trains nothing."""

    trains = False

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> None:
        """Do nothing."""

    def run(self, setting: Setting, examples: None) -> Recovered:
        return Recovered(setting.model)
