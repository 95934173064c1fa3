"""Model files: what lies in a model's folder, looked at before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import cached_file

POINTER = b"version https://git-lfs.github.com/spec/"
"""What a file of git-lfs begins with while only its address is there."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that a weight can have as a number, not as a code for one."""

CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tokenization_*.py",
    "chat_template*",
    "*processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files that a model is used with, and whose content no pruning changes."""


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder that a model's files are in: its own, or, of a model of the hub that was loaded, the cache's.

    Raises OSError if the hub's model is neither in the cache nor to be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(cached_file(str(source), "config.json", revision=revision)).parent


def carried_files(folder: Path) -> list[Path]:
    """The files of a model's folder that belong beside the pruned one too, as they are."""
    found = {path for pattern in CARRIED for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def check_files(folder: Path) -> None:
    """Raise ValueError if a file is only git-lfs's pointer to it, or if weights are codes instead of floats."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ValueError(f"{path} is a pointer of git-lfs, not the file; expected it after git lfs pull")
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in dtypes(path):
            if name.endswith("weight") and dtype not in FLOATS:
                raise ValueError(
                    f"{path}: {name} is stored as {dtype}, as in a quantised model; expected weights in "
                    f"{', '.join(FLOATS)}"
                )


def dtypes(path: Path) -> Iterator[tuple[str, str]]:
    """The tensors of a safetensors file and what they are stored as; none if its header cannot be read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return  # cut short or no such file, which who reads the weights says
        try:
            header = json.loads(file.read(size))
        except ValueError:
            return
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry["dtype"]
