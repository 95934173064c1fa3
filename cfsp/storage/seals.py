"""Seals: what kept files are of, and their checksums, in a small file that is written last.

Files without a seal, or that do not agree with it, count as not there: a flipped bit, a changed digit, a
truncated or lost file, and a file that was put under another's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cfsp.storage.atomic import replacing


def seal(mark: Path, of: str, files: Iterable[Path], **notes: Any) -> None:
    """Write the seal of files in or below its own folder. of: what they are of; notes: JSON data."""
    sums = {file.relative_to(mark.parent).as_posix(): file_checksum(file) for file in sorted(files)}
    data = {"of": of, "files": sums, "notes": notes}
    # A file of its own, so that one module serves safetensors, JSON and what transformers' Trainer writes.
    with replacing(mark) as part:
        part.write_text(json.dumps(data | {"sha256": checksum(data)}) + "\n")


def unseal(mark: Path, of: str, quick: bool = False) -> dict[str, Any]:
    """The notes of a seal, once all of its files are as they were sealed.

    quick: files that are older than the seal are not read: for a listing, which uses none of them.

    Raises:
        ValueError: there is no seal; it is of something else; a file is lost or was altered.
    """
    data = read_seal(mark)
    if data["of"] != of:
        raise ValueError(f"{mark} is of {data['of']!r}, not of {of!r}")
    for name, written in data["files"].items():
        file = mark.parent / name
        try:
            untouched = quick and file.stat().st_mtime_ns < mark.stat().st_mtime_ns
            if not untouched and file_checksum(file) != written:
                raise ValueError(f"{file} is not as it was written")
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    return data["notes"]


def read_seal(mark: Path) -> dict[str, Any]:
    """A seal as it stands, its files unread. Raises ValueError if it is none."""
    try:
        data = json.loads(mark.read_text())
        if data.pop("sha256") != checksum(data):
            raise ValueError("not as it was written")
    except OSError as error:
        raise ValueError(f"{mark} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{mark} is no seal ({error})") from error
    return data


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, however it is laid out in a file."""
    stored = json.loads(json.dumps(data))  # numbers as keys are text in a file, and sort otherwise
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def file_checksum(file: Path) -> str:
    """SHA-256 of a file. Where processors have instructions for it, it is read faster than a disk writes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
