"""Fine-tuning with Hugging Face's Trainer: any parameters, any objective, any examples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_seed
from cfsp.data.examples import Split, TrainingData
from cfsp.data.texts import Text
from cfsp.recovery.base import Recovered, Recovery
from cfsp.training.arguments import Training
from cfsp.training.base import Objective, Parameters, Setting
from cfsp.training.loop import Loop


@dataclass(frozen=True, kw_only=True)
class Finetune(Recovery):
    """Trains `parameters` for an `objective` on `data`.

    A killed run resumes from its last checkpoint in setting.folder.
    """

    parameters: Parameters
    objective: Objective
    data: TrainingData
    training: Training
    seed: int

    def __post_init__(self) -> None:
        check_seed("recovery.seed", self.seed)

    @property
    def loop(self) -> Loop:
        """The training loop with these parts."""
        return Loop(self.parameters, self.objective, self.data, self.training, self.seed)

    @property
    def needs_dense(self) -> bool:
        return self.objective.needs_dense

    @property
    def trains_head(self) -> bool:
        return not self.needs_dense  # the dense model's head would be random too

    @property
    def keeps_apart(self) -> bool:
        return self.parameters.apart

    def reads(self) -> list[Text]:
        return self.data.texts

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        return self.loop.prepare(model, tokenizer, statistics)

    def run(self, setting: Setting, examples: Split) -> Recovered:
        """Train from the last complete checkpoint in setting.folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        trained = self.loop.run(setting, examples)
        return Recovered(trained.model, trained.notes, trained.adapters)
