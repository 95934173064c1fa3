"""Language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.tasks.base import Task
from cfsp.model.blocks import is_causal


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Predict the next token. Trained on any text; measured by perplexity and zero-shot tasks."""

    options: ClassVar[Mapping[str, Any]] = {"use_cache": False}

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
        if not is_causal(model):
            raise ValueError(
                f"{what} trains causal language models, not {type(model).__name__}; expected "
                f"model.head=causal_lm, or another task (task=sst2, glue, squad) and {what}/data=task"
            )

    def decisions(self, output: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = inputs["labels"][:, 1:]
        counts = labels != -100  # [batch, tokens - 1]
        return output.logits[:, :-1][counts], labels[counts]

    def weights(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.pad((inputs["labels"][:, 1:] != -100).float(), (0, 1))

    def loss(self, model: nn.Module, inputs: Mapping[str, Tensor], decisions: Tensor | int | None) -> Tensor:
        """Return the model's own loss: in some families it is not the plain cross-entropy. []"""
        return model(**inputs, num_items_in_batch=decisions, use_cache=False).loss
