"""What a pruner is: how a model learns, in one training loop, which of its units it can do without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.options import Checked


class Pruning(ABC):
    """A pruner at work on one model. Its scores are parameters of modules inside the model."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: {"params": [...], "lr": ..., "weight_decay": ...}."""

    @abstractmethod
    def begin_step(self, progress: float) -> None:
        """A step begins. progress: share of all steps that are done, in [0, 1]."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """What is added to the loss of a step. scalar"""

    def after_step(self) -> None:  # noqa: B027 (most methods do nothing here)
        """The optimiser has stepped: project, where the method does."""

    @abstractmethod
    def removed(self) -> float:
        """The share of the sites' parameters that is gone by the masks as they are now."""

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """Site name -> score of each unit, higher means keep. [units]"""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a restart goes on from, besides the model's weights: its scores, by name."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    @abstractmethod
    def detach(self) -> dict[str, Any]:
        """Take all modules out of the model; masks stay in its weights as zeros.

        Returns what a record should say of the pruning.
        """


class Pruner(Checked, ABC):
    """Which units learn to go, and by what rule."""

    @abstractmethod
    def check(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Raise ValueError if this model cannot be pruned so."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, sites: Sequence[Site], target: float) -> Pruning:
        """Put scores into the model. target: the share of the sites' parameters that has to go."""
