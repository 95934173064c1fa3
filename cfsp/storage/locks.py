"""Locks: of several processes that want the same thing one makes it, and the others wait."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cfsp.storage.atomic import writing

LOCKLESS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What a file system says that has no locks."""


@contextmanager
def holding(lock: Path, why: str) -> Iterator[None]:
    """Hold a lock that the system releases with the process; say why one waits, if one waits.

    It is a flock: machines that share a folder exclude each other where the file system carries flocks
    between them (local disks, NFS since Linux 2.6.12, Lustre mounted with `flock`). The file goes with
    the hold; one that a killed process left holds nothing and is taken over.

    Raises:
        OSError: the lock cannot be made.
    """
    hold = FileLock(lock, fallback_to_soft=False)
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            hold.acquire(timeout=1)
        except Timeout:
            print(f"cfsp: waiting: {why}", file=sys.stderr)
            hold.acquire()
    try:
        yield
    finally:
        # While it is held: who waits on the file that goes notices, and takes a new one (filelock does).
        with suppress(OSError):  # it holds nothing, wherever it stays
            lock.unlink(missing_ok=True)
        hold.release()


@contextmanager
def holding_if_possible(lock: Path, why: str, only: set[int] | None = None) -> Iterator[bool]:
    """Hold a lock, or go on without one, which is said on stderr. -> whether it is held

    only: errors of the system (errno) that one may go on after; None: all.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(lock, why))
            held = True
        except OSError as error:
            if only is not None and error.errno not in only:
                raise
            print(f"cfsp: going on without a lock: {error}", file=sys.stderr)
            held = False
        yield held
