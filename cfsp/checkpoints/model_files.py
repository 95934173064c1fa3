"""Model files: what lies in a model's folder, looked at before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

POINTER = b"version https://git-lfs.github.com/spec/"
"""What a file of git-lfs begins with while only its address is there."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that a weight can have as a number, not as a code for one."""

PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
"""Files of weights as torch writes them, which transformers reads where there is no safetensors file."""

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
"""Files that say what the objects say that a run does not change: how to decode, and the tokenizer."""

OTHERS = ("*processor_config.json", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
"""Other files beside a model that hold for the pruned one too: they travel as they are."""


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder that a model's files are in: its own, or, of a loaded model of the hub, the cache's.

    Raises OSError if the hub's model is neither in the cache nor to be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    wanted = ["config.json", *UNCHANGED, *OTHERS]
    return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))


def carried_files(folder: Path, unchanged: bool) -> list[Path]:
    """The files of a model's folder that belong beside the pruned one. unchanged: `UNCHANGED` ones too."""
    patterns = (*UNCHANGED, *OTHERS) if unchanged else OTHERS
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def check_files(folder: Path) -> None:
    """Raise ValueError if a file is only git-lfs's pointer to it, or if weights are codes, not floats."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(f"{path} is a pointer of git-lfs; expected the file (git lfs pull)")
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in dtypes(path):
            if name.endswith("weight") and dtype not in FLOATS:
                raise ValueError(coded(path, name, dtype))


def check_pickled(folder: Path) -> None:
    """Raise ValueError if weights in files of torch are codes, not floats. No weight is read.

    For a folder that a model was loaded from: what is no such file at all raises as torch does.
    """
    if any(folder.glob("*.safetensors")):
        return
    for path in sorted(path for pattern in PICKLED for path in folder.glob(pattern)):
        for name, weight in torch.load(path, map_location="meta", weights_only=True).items():
            if name.endswith("weight") and weight.dtype not in PICKLED_FLOATS:
                raise ValueError(coded(path, name, str(weight.dtype).removeprefix("torch.")))


def coded(path: Path, name: str, dtype: str) -> str:
    """What to tell of a weight that is a code for a number."""
    wanted = ", ".join(FLOATS)
    return f"{path}: {name} is stored as {dtype}, as in a quantised model; expected weights in {wanted}"


def dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """The tensors of a safetensors file and what they are stored as; none if its header cannot be read."""
    for name, entry in header_of(path)[0].items():
        if isinstance(entry, dict) and "dtype" in entry:
            yield name, entry["dtype"]


def has_full_length(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    header, start = header_of(path)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == start + max(ends, default=0)
    except (TypeError, KeyError, IndexError):  # no such header
        return False


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, empty if it cannot be read, and where the header ends."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return {}, 8  # cut short or no such file, which who reads the weights says
        try:
            header = json.loads(file.read(size))
        except ValueError:
            header = None
    return header if isinstance(header, dict) else {}, 8 + size
