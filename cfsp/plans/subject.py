"""Subject: the dense model that a plan is made for, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.model.sites import Site
from cfsp.storage.cache import OFF, Cache
from cfsp.storage.fingerprints import fingerprint

Follow = Callable[[Mapping[str, float], int], None]
"""(values, step) -> None: called with the values of a training step."""


@dataclass(frozen=True)
class Subject:
    """A dense model with the sites that may be cut.

    cache: stores what is measured of the dense model, for the next plan.
    folder: for the checkpoints of a schedule that trains.
    follow: called with the values of each training step of such a schedule.
    measured: what was measured of the dense model and is needed again (`cfsp.statistics.cached`).
    """

    model: PreTrainedModel
    sites: Sequence[Site]
    cache: Cache = OFF
    tokenizer: PreTrainedTokenizerBase | None = None
    folder: Path | None = None
    follow: Follow = lambda values, step: None
    measured: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the dense model's content. The first access reads every weight once."""
        return fingerprint(self.model)
