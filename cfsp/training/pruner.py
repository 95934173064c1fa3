"""The base classes of pruners: they learn which units a model does not need while it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.options import Checked


class Pruning(ABC):
    """A pruner inside one model. Its scores are parameters of modules of the model."""

    @abstractmethod
    def groups(self, steps: int) -> list[dict[str, Any]]:
        """Return groups for the optimizer: {"params": [...], "lr": ..., "weight_decay": ...}.

        steps: number of steps of the training; 0 if it does not matter.
        """

    @abstractmethod
    def begin_step(self, progress: float) -> None:
        """Set the masks for a step. progress: fraction of the steps that are done, in [0, 1]."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return the term that is added to the loss of a step. []"""

    def after_step(self) -> None:  # noqa: B027  # most methods do nothing here
        """Change the scores after the optimizer's step, for example to project them."""

    @abstractmethod
    def removed(self) -> float:
        """Return the fraction of the sites' parameters that the present masks remove."""

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """Return site name -> the score of each unit; higher means keep. [units]"""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything besides the model's weights that a restart needs. name -> scores [as trained]"""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    @abstractmethod
    def detach(self) -> dict[str, Any]:
        """Remove the pruner's modules from the model. The masks stay in the weights, as zeros.

        Returns notes for the record: "reached" is the fraction that the masks removed.
        """


class Pruner(Checked, ABC):
    """Chooses what is scored, and the rule by which scores become masks."""

    @abstractmethod
    def check(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Raise ValueError if the pruner cannot prune this model."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, sites: Sequence[Site], target: float) -> Pruning:
        """Add scores to the model. target: the fraction of the sites' parameters to remove."""
