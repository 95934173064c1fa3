"""What a recovery is, and what its parts are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.data.texts import Text
from cfsp.model.adapters import Adapters
from cfsp.model.blocks import block_modules
from cfsp.options import Checked
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.training.base import Change


@dataclass(frozen=True)
class Setting:
    """What one recovery works on. folder: for its checkpoints; follow: is told the numbers of a step."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    change: Change
    folder: Path
    dense: PreTrainedModel | None = None
    follow: Callable[[Mapping[str, float], int], None] = lambda values, step: None


@dataclass(frozen=True)
class Recovered:
    """The trained model; what training was and cost, as JSON data; the adapters, if they were kept."""

    model: PreTrainedModel
    training: dict[str, Any] | None = None
    adapters: Adapters | None = None


class Recovery(Checked, ABC):
    """Trains a pruned model."""

    needs_dense: bool = False
    """Whether the dense model must stay beside the pruned one."""

    keeps_apart: bool = False
    """Whether what it trained stays beside the model, in files of its own."""

    def reads(self) -> Sequence[Text]:
        """Texts that it trains on."""
        return []

    @abstractmethod
    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Any:
        """Read the data and check all that can be checked before anything costly runs.

        statistics: what calibration will measure. Raises ValueError with what would be accepted.
        """

    @abstractmethod
    def run(self, setting: Setting, examples: Any) -> Recovered:
        """Train. examples: what `prepare` returned."""


def block_parameters(model: PreTrainedModel) -> list[int]:
    """Parameters of every block."""
    blocks = (model.get_submodule(path) for path in block_modules(model))
    return [sum(weight.numel() for weight in block.parameters()) for block in blocks]


def change_of(before: Sequence[int], model: PreTrainedModel, plan: PrunePlan) -> Change:
    """What a plan did to a model. before: `block_parameters` of the dense model."""
    kept: Sequence[int] = range(len(before))
    cuts = [edit for edit in plan.edits if isinstance(edit, Cut)]
    for cut in cuts:
        if cut.kind == "block":
            kept = cut.keep
    gone = tuple(1 - size / before[block] for block, size in zip(kept, block_parameters(model), strict=True))
    measured = plan.notes.get("block_statistics", {}).get("block_angular")
    importance = None if measured is None else tuple(measured[block] for block in kept)
    residual = any(cut.removed for cut in cuts if cut.kind == "hidden")
    return Change(tuple(kept), gone, importance, residual)
