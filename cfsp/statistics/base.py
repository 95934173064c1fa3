"""Statistics: what can be measured at a site while calibration batches pass through the model.

A statistic is a mean over the tokens that the attention mask shows, so it depends neither on how
samples are batched nor on how many there are. Tokens are taken in chunks, in float32; the sums over
chunks run in float64, and only vectors are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfsp.model.remaining import Remaining
from cfsp.model.sites import Site

CHUNK = 1024
"""Tokens that a statistic takes at once: bounds its temporaries by a share of a batch's activations."""

Stats = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> value."""

STATISTICS: dict[str, type[Quantity]] = {}
"""Name -> what can be measured. Each puts itself here when its class is defined, wherever that is."""


class Quantity(ABC):
    """One thing that calibration measures at a site, of activations or of gradients.

    A subclass with a `name` is known from then on: a criterion that lists the name in `needs` gets it.
    """

    name: ClassVar[str]

    backward: ClassVar[bool] = False
    """Whether it is made of gradients, so that it takes passes forward and backward."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the class known by its name.

        Raises ValueError if another has it; the same class defined again, as in a notebook, takes over.
        """
        super().__init_subclass__(**options)
        if "name" not in vars(cls):  # a base for others
            return
        path = f"{cls.__module__}.{cls.__qualname__}"
        known = STATISTICS.setdefault(cls.name, cls)
        if f"{known.__module__}.{known.__qualname__}" != path:
            raise ValueError(
                f"statistic name={cls.name!r} of {path}: {known.__module__}.{known.__qualname__} has it; "
                "expected a name of its own"
            )
        STATISTICS[cls.name] = cls

    @staticmethod
    @abstractmethod
    def of_remaining(value: Tensor, remaining: Remaining) -> Tensor:
        """Return the part of a value that belongs to the units and channels that are left. [left, ...]"""


class Statistic(Quantity):
    """A quantity of activations: one object sees all batches at one module."""

    axes: ClassVar[int] = 1
    """Leading axes of the result that run over channels; where there are two, with a constant appended."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        """Which tokens of the current batch count. [batch * tokens], None: all of them"""
        self.rows = 1
        """Samples in the current batch."""

    def begin(self, shown: Tensor | None, rows: int) -> None:
        """A batch of so many rows begins; shown: which of its tokens count, None for all. [batch * tokens]"""
        self.mask, self.rows = shown, rows

    def chunks(self, states: Tensor) -> Iterator[Tensor]:
        """The counted tokens in float32. [..., channels] -> [up to CHUNK tokens, channels] each"""
        rows = states.detach().flatten(0, -2).split(CHUNK)
        masks = [None] * len(rows) if self.mask is None else self.mask.split(CHUNK)
        for chunk, mask in zip(rows, masks, strict=True):
            yield (chunk if mask is None else chunk[mask]).float()

    @staticmethod
    @abstractmethod
    def modules(site: Site) -> tuple[str, ...]:
        """Paths of the modules that it is measured at: one, or one for each unit."""

    @abstractmethod
    def watch(self, module: nn.Module) -> RemovableHandle:
        """Attach to a module. The handle detaches."""

    @classmethod
    def of_remaining(cls, value: Tensor, remaining: Remaining) -> Tensor:
        """Return the part of a value that belongs to the channels that are left. [left] or [left, left]

        A scalar stays as it is. Override this where the value's axes run over something else.
        """
        if value.dim() == 0:
            return value
        channels = remaining.channels
        if cls.axes == 2:
            channels = torch.cat([channels, torch.tensor([True])])  # and the constant
            return value[channels][:, channels]
        return value[channels]

    @abstractmethod
    def result(self) -> Tensor:
        """The value over all tokens seen so far: [channels], or as the class says of its result."""

    def finite(self) -> Tensor:
        """Whether it is neither NaN nor infinite so far. [], bool"""
        return self.result().isfinite().all()
