"""Fine-tuning with Hugging Face's Trainer: any parameters, any objective, any examples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_seed
from cfsp.data.examples import Split
from cfsp.recovery.base import Recovered, Recovery
from cfsp.recovery.distilled_from import load_teacher, with_teacher
from cfsp.training.base import Setting
from cfsp.training.loop import WithLoop


@dataclass(frozen=True, kw_only=True)
class Finetune(WithLoop, Recovery):
    """Trains `parameters` for an `objective` on `data`.

    A killed run resumes from its last checkpoint in setting.folder.
    """

    def __post_init__(self) -> None:
        check_seed("recovery.seed", self.seed)

    @property
    def needs_dense(self) -> bool:
        return self.objective.needs_dense

    @property
    def keeps_apart(self) -> bool:
        return self.parameters.apart

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        if self.parameters.frozen:
            raise ValueError(
                "recovery.parameters=frozen trains nothing; expected recovery/parameters=full, lora or "
                "importance_lora"
            )
        load_teacher(self.objective, model, tokenizer)  # only a check: it would take memory until training
        return self.loop.prepare(model, tokenizer, statistics)

    def run(self, setting: Setting, examples: Split) -> Recovered:
        """Train from the last complete checkpoint in setting.folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        setting, notes = with_teacher(setting, self.objective)
        trained = self.loop.run(setting, examples)
        return Recovered(trained.model, trained.notes | notes, trained.adapters)
