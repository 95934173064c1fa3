"""Tensors: read and write safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors [any axes] of a safetensors file. Raises ValueError if it is not one."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
