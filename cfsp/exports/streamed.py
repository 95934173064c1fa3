"""Streamed: weights in safetensors files, of which one at a time is in memory.

The package safetensors writes a file only of weights that are all in memory. The format is stable and small:
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Type of a weight -> what safetensors calls it."""


@dataclass(frozen=True)
class StreamedWeight:
    """A weight that is not there yet. make: computes it, of this shape and type, when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_streamed(folder: Path, weights: Sequence[StreamedWeight], most: str = "5GB") -> None:
    """Write weights as transformers names its files. most: size of a file."""
    by_name = {one.name: one for one in weights}
    empty = {one.name: torch.empty(one.shape, dtype=one.dtype, device="meta") for one in weights}
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern="model{suffix}.safetensors", max_shard_size=most
    )
    for name, tensors in split.filename_to_tensors.items():
        write_file(folder / name, [by_name[one] for one in tensors])
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def write_file(path: Path, weights: Sequence[StreamedWeight]) -> None:
    """Write a safetensors file: the length of a JSON text, the text, and the numbers that it describes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in weights:
        start, end = end, end + torch.Size(one.shape).numel() * one.dtype.itemsize
        header[one.name] = {"dtype": KINDS[one.dtype], "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in weights:
            weight = one.make().detach().cpu()
            assert (weight.shape, weight.dtype) == (torch.Size(one.shape), one.dtype), one.name
            file.write(weight.contiguous().view(-1).view(torch.uint8).numpy().data)
