"""Exits: how a command ends where it cannot go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_exits(program: str, interrupted: str = "interrupted") -> Iterator[None]:
    """Turn an error of the block into one line on stderr and exit code 1, and Ctrl-C into code 130.

    interrupted: what Ctrl-C prints.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
