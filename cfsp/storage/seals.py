"""Seals: a small file, written last, that holds what stored files belong to and their checksums.

Files without a seal, or that do not match it, count as absent. This finds a flipped bit, a changed digit, a
truncated or lost file, and a file that was stored under another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cfsp.storage.atomic import replacing


def seal(mark: Path, of: str, files: Iterable[Path], **notes: Any) -> None:
    """Write the seal of files in or below its own folder. of: what they belong to; notes: JSON data."""
    sums = {file.relative_to(mark.parent).as_posix(): file_checksum(file) for file in sorted(files)}
    data = as_read({"of": of, "files": sums, "notes": notes})
    # A file of its own, so that one module serves safetensors, JSON and what transformers' Trainer writes.
    with replacing(mark) as part:
        part.write_text(json.dumps(data | {"sha256": checksum(data)}) + "\n")


def unseal(mark: Path, of: str, quick: bool = False) -> dict[str, Any]:
    """Check the files of a seal and return its notes.

    quick: do not read files that are older than the seal; for listings, which do not use the files.

    Raises:
        ValueError: there is no seal, it belongs to something else, or a file is lost or was altered.
    """
    data = read_seal(mark)
    if data["of"] != of:
        raise ValueError(f"{mark} belongs to {data['of']!r}, not to {of!r}")
    for name, written in data["files"].items():
        file = mark.parent / name
        try:
            untouched = quick and file.stat().st_mtime_ns < mark.stat().st_mtime_ns
            if not untouched and file_checksum(file) != written:
                raise ValueError(f"{file} was altered after it was written")
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    return data["notes"]


def read_seal(mark: Path) -> dict[str, Any]:
    """Read a seal without checking its files. Raises ValueError if the file is not a seal."""
    try:
        data = json.loads(mark.read_text())
        if data.pop("sha256") != checksum(data):
            raise ValueError("it was altered after it was written")
    except OSError as error:
        raise ValueError(f"{mark} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{mark} is no seal ({error})") from error
    return data


def checksum(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON data, as a file gives it. Its layout in the file does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def as_read(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as it comes back from a JSON file: numeric keys become text, which sorts differently."""
    return json.loads(json.dumps(data))


def file_checksum(file: Path) -> str:
    """Return the SHA-256 of a file. With a processor's SHA instructions this is faster than a disk writes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
