"""Adapters: what is known of a peft model where peft is not imported."""

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
        """What holds the adapters; its `unload()` gives the model without them."""
        ...

    def save_pretrained(self, save_directory: str) -> None:
        """Write the adapters alone into a folder."""
        ...
