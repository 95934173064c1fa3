"""Atomic writes: a file or a folder is either complete or absent."""

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
"""Messages of the RuntimeError that `torch.save` raises when a file cannot be written."""
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "expected more free space there, or another folder"
    ),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "expected a folder that can be written"),
}
"""Error number (errno) -> what the user can do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise every failure to write `path` as an `Unwritten` that names the path and a remedy.

    Libraries raise different errors for a failed write, and a full disk does not name the file. An error
    that names another file, such as the source of a copy, is raised unchanged.
    """
    try:
        yield
    # tokenizers raises a plain Exception if a file cannot be written; its subclasses mean something else.
    except Exception as error:
        if isinstance(error, Unwritten) or not is_of_a_disk(error) or names_another(path, error):
            raise
        raise Unwritten.of(path, error) from error


class Unwritten(OSError):
    """A path cannot be written."""

    @classmethod
    def of(cls, path: Path, error: Exception) -> Unwritten:
        # safetensors and tokenizers are written in Rust; their errors hold the errno as text.
        said = re.search(r"os error (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(said[1]) if said else None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        remedy = REMEDIES.get(number or 0, "expected a writable disk with free space")
        made = cls(f"{path} cannot be written ({reason}); {remedy}")
        made.errno = number
        return made


def is_of_a_disk(error: Exception) -> bool:
    """Return whether this is an error that a library raises when a file cannot be written."""
    if isinstance(error, RuntimeError):
        return TORCH_WRITER.search(str(error)) is not None
    return isinstance(error, OSError | SafetensorError) or type(error) is Exception


def names_another(path: Path, error: Exception) -> bool:
    """Return whether an error names files, none of which is the path, its part file, inside it or above it.

    A failed copy names both its source and its target.
    """
    given = [getattr(error, name, None) for name in ("filename", "filename2")]
    named = [Path(os.path.abspath(os.fsdecode(one))) for one in given if isinstance(one, str | bytes | Path)]
    return bool(named) and not any(is_of(Path(os.path.abspath(path)), one) for one in named)


def is_of(path: Path, named: Path) -> bool:
    """Return whether `named` is the path, its part file, inside it or above it. Both are absolute."""
    if not named.is_relative_to(path.parent):
        return path.is_relative_to(named)
    top = next(iter(named.relative_to(path.parent).parts), path.name)
    return top == path.name or top.startswith(f".{path.name}.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a part file to write; rename it to `path` if the block succeeds, else delete it.

    Create the folder if needed. A killed process leaves a hidden `.part` file, which is never read;
    `clear_parts` deletes it.

    Raises:
        Unwritten: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{tag()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes a file that only its owner may read
            sync(part)  # before the rename: else a power cut could leave a truncated file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a part folder to fill; rename it to `folder` if the block succeeds, else delete it.

    Raises:
        Unwritten: the folder cannot be written.
    """
    part = folder.with_name(f".{folder.name}.{tag()}.part")
    old = part.with_suffix(".old")
    with writing(folder):
        try:
            part.mkdir(parents=True)
            yield part
            for written in [*part.rglob("*"), part]:  # before the rename, as in `replacing`
                if written.is_file() and not written.is_symlink():
                    written.chmod(part.stat().st_mode & 0o666)  # as in `replacing`
                if not written.is_symlink():
                    sync(written)
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            put_back(old, folder)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def put_back(old: Path, folder: Path) -> None:
    """Rename the old folder back if no new one has taken its place; else delete it."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def tag() -> str:
    """Return a random name for one write. Process ids repeat between machines that share a folder."""
    return secrets.token_hex(8)


def parts_of(path: Path) -> list[Path]:
    """List the parts beside a file or a folder that killed writes left or running writes use."""
    made = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.(part|old)")
    return [one for one in path.parent.glob(".*") if made.fullmatch(one.name)]


def clear_parts(path: Path) -> None:
    """Delete the parts that killed writes left; rename back a folder that one was about to replace.

    The caller must keep all others from writing the path.
    """
    for left in parts_of(path):
        if left.suffix == ".old":
            put_back(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Create a file of `size` bytes and allocate its disk space.

    Without the space, writing to the mapped file would kill the process.

    Raises:
        Unwritten: the file cannot be written.
    """
    with writing(path), path.open("wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def write_json(path: Path, data: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n")
