"""Model files: check and list the files in a model's folder without loading the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of a git-lfs pointer, a file that holds only the address of the real file."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Names of floating-point types in safetensors. Other types are codes of quantised weights."""

PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Weight files of torch, which transformers reads if there is no safetensors file."""

PICKLED_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

UNCHANGED = (  # copied, not written from what was read: transformers drops keys that it does not know
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tokenization_*.py",
)
"""Files of what a run does not change: the generation config and the tokenizer."""

OTHERS = ("*processor_config.json", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Other files that also apply to the pruned model. They are copied unchanged."""


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model's files; for a loaded model of the hub, the one in the hub's cache.

    Raises OSError if the hub's model is not in the cache and cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    wanted = ["config.json", *UNCHANGED, *OTHERS]
    return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))


def carried_files(folder: Path, unchanged: bool) -> list[Path]:
    """List the files of a model's folder to copy beside the pruned one. unchanged: `UNCHANGED` ones too."""
    patterns = (*UNCHANGED, *OTHERS) if unchanged else OTHERS
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def check_files(folder: Path) -> None:
    """Raise ValueError if a file is a git-lfs pointer, or if weights are quantised codes, not floats."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(f"{path} is a pointer of git-lfs; expected the file (git lfs pull)")
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in dtypes(path):
            if name.endswith("weight") and dtype not in FLOATS:
                raise ValueError(coded(path, name, dtype))


def check_pickled(folder: Path) -> None:
    """Raise ValueError if weights in torch's files are quantised codes, not floats. No weight is read.

    Only for a folder that a model was loaded from: for a malformed file torch raises its own error.
    """
    if any(folder.glob("*.safetensors")):
        return
    for path in sorted(path for pattern in PICKLED for path in folder.glob(pattern)):
        for name, weight in torch.load(path, map_location="meta", weights_only=True).items():
            if name.endswith("weight") and weight.dtype not in PICKLED_FLOATS:
                raise ValueError(coded(path, name, str(weight.dtype).removeprefix("torch.")))


def coded(path: Path, name: str, dtype: str) -> str:
    """Return the message for a weight that is stored as quantised codes."""
    wanted = ", ".join(FLOATS)
    return f"{path}: {name} is stored as {dtype}, as in a quantised model; expected weights in {wanted}"


def dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and dtype of the tensors of a safetensors file; none if its header cannot be read."""
    for name, entry in header_of(path)[0].items():
        if isinstance(entry, dict) and "dtype" in entry:
            yield name, entry["dtype"]


def has_full_length(path: Path) -> bool:
    """Return whether a safetensors file is as long as its header says."""
    header, start = header_of(path)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == start + max(ends, default=0)
    except (TypeError, KeyError, IndexError):  # malformed header
        return False


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, empty if it cannot be read, and where the header ends."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return {}, 8  # truncated or not safetensors: reading the weights reports it
        try:
            header = json.loads(file.read(size))
        except ValueError:
            header = None
    return header if isinstance(header, dict) else {}, 8 + size
