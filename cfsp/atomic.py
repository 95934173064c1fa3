"""Atomic writes: a file is either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the final name when the block ends well, and goes otherwise.

    Makes the folder if need be. What a killed process leaves is a hidden `.part` that nobody reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: two machines that share the folder may have the same.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb") as written:  # on the disk before it has its name: a power cut leaves no stump
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say whose
        raise
    finally:
        part.unlink(missing_ok=True)
