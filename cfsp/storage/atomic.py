"""Atomic writes: a file or a folder is either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|Parent directory")
"""What `torch.save` says, as a RuntimeError, where the disk does not take a file."""
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "expected more free space there, or another folder"
    ),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "expected a folder that can be written"),
}
"""What to do, by the system's number of the error."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what a disk does not take as one OSError that names the path and says what to do.

    Libraries have names of their own for it, and a full disk does not say whose file it was.
    """
    try:
        yield
    # tokenizers raises a bare Exception if a file cannot be written; anything finer is its own.
    except Exception as error:
        if isinstance(error, Unwritten) or not is_of_a_disk(error):
            raise
        raise Unwritten.of(path, error) from error


class Unwritten(OSError):
    """A path that the disk did not take."""

    @classmethod
    def of(cls, path: Path, error: Exception) -> Unwritten:
        # safetensors and tokenizers are written in Rust, whose errors hold the number as text.
        said = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(said[1]) if said else None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        remedy = REMEDIES.get(number or 0, "expected a disk that takes it, with free space")
        made = cls(f"{path} cannot be written ({reason}); {remedy}")
        made.errno = number
        return made


def is_of_a_disk(error: Exception) -> bool:
    """Whether this is how a library says that a file could not be written."""
    if isinstance(error, RuntimeError):
        return TORCH_WRITER.search(str(error)) is not None
    return isinstance(error, OSError | SafetensorError) or type(error) is Exception


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the final name when the block ends well, and goes otherwise.

    Makes the folder if need be. What a killed process leaves is a hidden `.part` that nobody reads
    (`clear_parts`).

    Raises:
        Unwritten: the disk does not take it.
    """
    part = path.with_name(f".{path.name}.{tag()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open(
                "rb"
            ) as written:  # on the disk before it has its name: a power cut leaves no stump
                os.fsync(written.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes the final name when the block ends well, and goes otherwise.

    Raises:
        Unwritten: the disk does not take it.
    """
    part = folder.with_name(f".{folder.name}.{tag()}.part")
    old = part.with_suffix(".old")
    with writing(folder):
        try:
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            put_back(old, folder)


def put_back(old: Path, folder: Path) -> None:
    """Give what was to be replaced its name again, unless that is taken; then it goes."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def tag() -> str:
    """What sets the parts of one write apart: no process id, which two machines on one folder may share."""
    return secrets.token_hex(8)


def parts_of(path: Path) -> list[Path]:
    """What killed writes of a file or a folder left beside it; a running write's parts are among them."""
    made = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.(part|old)")
    return [one for one in path.parent.glob(".*") if made.fullmatch(one.name)]


def clear_parts(path: Path) -> None:
    """Delete what killed writes left, and put back what one was about to replace.

    Only for who keeps all others from writing it.
    """
    for left in parts_of(path):
        if left.suffix == ".old":
            put_back(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Make a file of so many bytes whose room is taken now: a mapped file that finds none kills the process.

    Raises:
        Unwritten: the disk does not take it.
    """
    with writing(path), path.open("wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n")
