"""The base class of compensations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from cfsp.model.views import UnitView
from cfsp.options import Checked

TARGETS = ("own", "dense", "residual")
"""What a consumer's output is fitted to; see `cfsp.compensation.least_squares`."""


class Compensation(Checked, ABC):
    """Corrects a site's consumer for the units that are removed.

    The plan carries the correction: surgery writes it, gates apply it, and criteria see it through their
    `UnitView`. The plan in a Hugging Face folder omits the fitted weights: they are in the model's.
    """

    needs: frozenset[str] = frozenset()
    """Names of the statistics that `compensate` reads."""

    target: str = "own"
    """Target of the consumer's output. All but "own" need a schedule that runs the dense model too."""

    rewrites: ClassVar[bool] = False
    """Whether it replaces the consumer's weights, which only one of the sites that share them can do."""

    kinds: ClassVar[frozenset[str] | None] = None
    """Kinds of the sites that it makes up for; None: all."""

    bridges: bool = False
    """Whether it also refits the MLP before dropped blocks, once all of them are known; see
    `cfsp.schedules.bridges`."""

    @property
    def leads_stream(self) -> bool:
        """Whether it fits the residual stream, to which a block must then add its MLP's output as it is."""
        return self.bridges or self.target == "residual"

    def check_samples(self, count: int, total: int) -> None:
        """Raise ValueError if it cannot be fitted to `count` of the `total` calibration samples."""

    @property
    def adds(self) -> frozenset[str]:
        """Fields of a `Cut` among "fill" and "bias" that it sets, each of which may add a bias."""
        return frozenset()

    @abstractmethod
    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return what replaces the units that are not in `keep`, as fields of a `Cut`.

        `fill` [units * span], `consumer` [kept * span, outputs], `bias` [outputs], those that apply.
        """


def check_fitted(site: str, fitted: Tensor) -> None:
    """Raise ValueError, with the site's name, if a fitted value is NaN or infinite. fitted: any shape"""
    if not fitted.isfinite().all():
        raise ValueError(
            f"{site}: a fitted weight is NaN or infinite; check the weights of the model, or load it with "
            "dtype=float32"
        )
