"""Adapters: the interface of a peft model for code that does not import peft, and their place at a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from transformers.pytorch_utils import Conv1D

from cfsp.model.sites import Member
from cfsp.model.weights import INSIDE, bias_of, path_outside


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


APART = "adapters"
"""Folder in a saved model's folder that holds adapters which are not merged."""

LOW_RANK = ("lora_A", "lora_B")
"""Names of the two factors of a low-rank adapter: r x inputs, outputs x r."""


def adapter_members(model: nn.Module, members: Sequence[Member]) -> tuple[Member, ...]:
    """Return the members of adapters that go with these members of a site.

    A row of lora_B goes with a row of the weight (an output), a column of lora_A with a column (an input).
    """
    found = []
    for member in members:
        outputs = member.dim == int(isinstance(model.get_submodule(member.module), Conv1D))
        path = member.module
        while path != path_outside(path):
            path = path.removesuffix(f".{INSIDE}")
            factor = "lora_B" if outputs else "lora_A"
            for name, linear in model.get_submodule(f"{path}.{factor}").named_children():
                has_bias = outputs and bias_of(linear) is not None
                place = f"{path}.{factor}.{name}"
                found.append(Member(place, 0 if outputs else 1, member.span, member.offset, has_bias))
    return tuple(found)


def why_not_low_rank(wrapper: nn.Module) -> str | None:
    """Return why adapters around a layer cannot be cut with it; None if they can."""
    for name, part in wrapper.named_children():
        if name != INSIDE and name not in LOW_RANK and any(True for _ in part.parameters()):
            return (
                f"it has {name}; expected low-rank adapters of lora_A and lora_B alone, or merge_and_unload()"
            )
    if not all(isinstance(getattr(wrapper, name, None), nn.ModuleDict) for name in LOW_RANK):
        return "it has no lora_A and lora_B; expected low-rank adapters, or merge_and_unload() first"
    return None


def wrappers(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yield the wrappers of the layer at a path of `path_inside`, the innermost first."""
    while path != path_outside(path):
        path = path.removesuffix(f".{INSIDE}")
        yield model.get_submodule(path)


def unwrap(model: nn.Module, path: str) -> str:
    """Put the layer inside in the place of its wrappers, and return its path. path: of `path_inside`."""
    outside = path_outside(path)
    if outside != path:
        model.set_submodule(outside, model.get_submodule(path))
    return outside
