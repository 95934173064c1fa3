"""The base classes of pruners: they learn which units a model does not need while it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.options import Checked


class Decide(Protocol):
    """The allocator's decision."""

    def __call__(self, scores: Mapping[str, Tensor], due: float = 1.0, /) -> Mapping[str, tuple[int, ...]]:
        """Return site name -> the units to keep.

        scores: site name -> score of each unit [units], higher means keep. due: the part of the requested
            removal that is due, in [0, 1].
        """
        ...


class Pruning(ABC):
    """A pruner inside one model. Its scores are parameters of modules of the model."""

    def join(self, module: nn.Module) -> None:  # noqa: B027  # most methods need none of these three
        """Take in the module that is trained, with the adapters in it."""

    def steer(self, optimizer: Any) -> None:  # noqa: B027
        """Take in the optimizer."""

    def begin(self, steps: int) -> None:  # noqa: B027
        """Take in the number of steps, before the first one or after a restart."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Return groups for the optimizer: {"params": [...], "weight_decay": ...}."""

    @abstractmethod
    def rate(self, steps: int) -> float:
        """Return the learning rate of the scores in a training of so many steps."""

    @abstractmethod
    def begin_step(self, progress: float) -> None:
        """Set the masks for a step. progress: fraction of the steps that are done, in [0, 1]."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return the term that is added to the loss of a step. []"""

    def after_step(self, step: int) -> None:  # noqa: B027
        """Change scores or weights after the optimizer's step, for example project them. step: from 1."""

    @abstractmethod
    def removed(self) -> float:
        """Return the fraction of the sites' parameters that the present masks remove."""

    @abstractmethod
    def decided(self) -> dict[str, tuple[int, ...]]:
        """Return site name -> the units to keep; decide now if that has not happened yet."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything besides the model's weights that a restart needs. name -> scores [as trained]"""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    @abstractmethod
    def detach(self) -> dict[str, Any]:
        """Remove the pruner's modules from the model. The masks stay in the weights, as zeros.

        Returns notes for the record: "reached" is the fraction that was masked before the decision.
        """


class Pruner(Checked, ABC):
    """Chooses what is scored, and the rule by which scores become masks."""

    on_adapters: bool = False
    """Whether it prunes by the adapters that are trained; otherwise it masks the weights themselves."""

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether scores are trained; otherwise they are measured."""

    @abstractmethod
    def check(self, model: PreTrainedModel, sites: Sequence[Site], adapted: Collection[str] = ()) -> None:
        """Raise ValueError if the pruner cannot prune this model. adapted: paths of layers with adapters."""

    def check_length(self, steps: int, units: int) -> None:  # most methods work at any length
        """Raise ValueError if a training of so many steps is too short to remove so many units."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, sites: Sequence[Site], target: float, decide: Decide) -> Pruning:
        """Add scores to the model.

        target: the fraction of the sites' parameters to remove. decide: chooses the units that stay.
        """
