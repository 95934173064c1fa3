"""Adapters: the interface of a peft model for code that does not import peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Adapters(Protocol):
    """A model with adapters around it, in files of their own when it is saved."""

    @property
    def peft_config(self) -> Mapping[str, Any]:
        """Name -> the config of these adapters."""
        ...

    @property
    def base_model(self) -> Any:
        """The module with the adapters. Its `unload()` returns the model without them."""
        ...

    def save_pretrained(self, save_directory: str) -> None:
        """Write the adapters alone into a folder."""
        ...
