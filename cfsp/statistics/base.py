"""Statistics: quantities that are measured at a site while calibration batches pass through the model.

A statistic is a mean over the tokens that count (`cfsp.passes.forward.counted_tokens`), so it depends
neither on the batching nor on the number of samples. Tokens are read in chunks, in float32. The sums over
chunks are float64, and only vectors are stored.
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
"""Tokens that a statistic reads at once, to limit the memory of its temporaries."""

Stats = dict[str, dict[str, Tensor]]
"""Site name -> statistic name -> value."""

STATISTICS: dict[str, type[Quantity]] = {}
"""Name -> class of a quantity. Each class registers itself when it is defined."""


class Quantity(ABC):
    """One thing that calibration measures at a site, of activations or of gradients.

    A subclass with a `name` is registered: a criterion that lists the name in `needs` gets its value.
    """

    name: ClassVar[str]

    backward: ClassVar[bool] = False
    """Whether it is computed from gradients, which takes forward and backward passes."""

    of_dense: ClassVar[bool] = False
    """Whether a schedule that goes from block to block measures it once, in the dense model."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Register the class by its name. The same class defined again, as in a notebook, replaces it.

        Raises ValueError if another class has the name.
        """
        super().__init_subclass__(**options)
        if "name" not in vars(cls):  # an abstract base
            return
        path = f"{cls.__module__}.{cls.__qualname__}"
        known = STATISTICS.setdefault(cls.name, cls)
        if f"{known.__module__}.{known.__qualname__}" != path:
            raise ValueError(
                f"statistic name={cls.name!r} of {path}: {known.__module__}.{known.__qualname__} has it; "
                "expected a name of its own"
            )
        STATISTICS[cls.name] = cls

    @classmethod
    @abstractmethod
    def of_remaining(cls, value: Tensor, remaining: Remaining) -> Tensor:
        """Return the part of a value for the units and channels that are left. [left, ...]"""


class Statistic(Quantity):
    """A quantity of activations. One object reads all batches at one module."""

    axes: ClassVar[int] = 1
    """Number of the result's leading axes over channels. If two, a constant is appended to both."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        """Which tokens of the current batch count. [batch * tokens], None: all of them"""
        self.rows = 1
        """Samples in the current batch."""

    def begin(self, shown: Tensor | None, rows: int) -> None:
        """Begin a batch of `rows` samples. shown: mask of its tokens [batch * tokens]; None: all of them."""
        self.mask, self.rows = shown, rows

    def chunks(self, states: Tensor) -> Iterator[Tensor]:
        """Yield the shown tokens in float32. [..., channels] -> [up to CHUNK tokens, channels] each"""
        rows = states.detach().flatten(0, -2).split(CHUNK)
        masks = [None] * len(rows) if self.mask is None else self.mask.split(CHUNK)
        for chunk, mask in zip(rows, masks, strict=True):
            yield (chunk if mask is None else chunk[mask]).float()

    @staticmethod
    @abstractmethod
    def modules(site: Site) -> tuple[str, ...]:
        """Return the paths of the modules to measure at: one, or one per unit."""

    @abstractmethod
    def watch(self, module: nn.Module) -> RemovableHandle:
        """Attach to a module. Return the handle that detaches."""

    @classmethod
    def of_remaining(cls, value: Tensor, remaining: Remaining) -> Tensor:
        """Return the part of a value for the channels that are left. [left] or [left, left]

        A scalar stays the same. Override this if the value's axes do not run over channels.
        """
        if value.dim() == 0:
            return value
        channels = remaining.channels
        if cls.axes == 2:
            channels = torch.cat([channels, torch.tensor([True])])  # keeps the constant
            return value[channels][:, channels]
        return value[channels]

    @abstractmethod
    def result(self) -> Tensor:
        """Return the value over all tokens so far: [channels], or the shape that the class states."""

    def finite(self) -> Tensor:
        """Return whether the value so far is neither NaN nor infinite. [], bool"""
        return self.result().isfinite().all()
