"""Subject: the dense model that a plan is made for, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.model.sites import Site
from cfsp.storage.cache import OFF, Cache
from cfsp.storage.fingerprints import fingerprint

Follow = Callable[[Mapping[str, float], int], None]
"""Is told the numbers of a training step."""


@dataclass(frozen=True)
class Subject:
    """A dense model with the sites that may be cut.

    cache: keeps what is measured of the dense model for the next plan.
    folder: for the checkpoints of a schedule that trains.
    follow: is told the numbers of each of its training steps.
    """

    model: PreTrainedModel
    sites: Sequence[Site]
    cache: Cache = OFF
    tokenizer: PreTrainedTokenizerBase | None = None
    folder: Path | None = None
    follow: Follow = lambda values, step: None

    @cached_property
    def fingerprint(self) -> str:
        """The name of the dense model's content. Every weight is read once, when it is first asked for."""
        return fingerprint(self.model)
