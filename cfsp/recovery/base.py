"""The base class of recoveries, and their result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.texts import Text
from cfsp.model.adapters import Adapters
from cfsp.model.blocks import block_modules
from cfsp.options import Checked
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.training.base import Change, Setting


@dataclass(frozen=True)
class Recovered:
    """The trained model. training: how and at what cost, as JSON data. adapters: None if merged."""

    model: PreTrainedModel
    training: dict[str, Any] | None = None
    adapters: Adapters | None = None


class Recovery(Checked, ABC):
    """Trains a pruned model. It knows the surgery only by its `Change`."""

    trains: bool = True
    """Whether it trains at all, so that a killed run has something to continue."""

    needs_dense: bool = False
    """Whether it needs the dense model beside the pruned one."""

    keeps_apart: bool = False
    """Whether its trained weights are saved in their own files beside the model."""

    trains_head: bool = False
    """Whether it trains a head that the checkpoint lacks."""

    def reads(self) -> Sequence[Text]:
        """Return the texts that it trains on."""
        return []

    @abstractmethod
    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Any:
        """Read the data. Check everything that can be checked before anything costly runs.

        statistics: names of the statistics to be measured. Raises ValueError with what would be accepted.
        """

    @abstractmethod
    def run(self, setting: Setting, examples: Any) -> Recovered:
        """Train the model. examples: what `prepare` returned."""


def block_parameters(model: PreTrainedModel) -> list[int]:
    """Return the number of parameters of every block."""
    blocks = (model.get_submodule(path) for path in block_modules(model))
    return [sum(weight.numel() for weight in block.parameters()) for block in blocks]


def change_of(before: Sequence[int], model: PreTrainedModel, plan: PrunePlan) -> Change:
    """Return how surgery changed a model. before: `block_parameters` of the dense model."""
    kept: Sequence[int] = range(len(before))
    cuts = [edit for edit in plan.edits if isinstance(edit, Cut)]
    for cut in cuts:
        if cut.units_are_blocks:
            kept = cut.keep
    gone = tuple(1 - size / before[block] for block, size in zip(kept, block_parameters(model), strict=True))
    measured = plan.notes.get("block_statistics", {}).get("block_angular")
    importance = None if measured is None else tuple(measured[block] for block in kept)
    residual = any(cut.removed for cut in cuts if cut.units_are_residual_channels)
    return Change(tuple(kept), gone, importance, residual)
