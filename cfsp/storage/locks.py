"""Locks: if several processes want the same result, one computes it and the others wait."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cfsp.storage.atomic import writing

LOCKLESS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Error numbers (errno) of a file system without locks."""


@contextmanager
def holding(lock: Path, why: str) -> Iterator[None]:
    """Hold a lock; print `why` while waiting for it. The system releases it when the process ends.

    The lock is a flock. It works on local disks, and between machines where the file system supports that
    (NFS since Linux 2.6.12, Lustre mounted with `flock`). The lock file is deleted on release. A file that a
    killed process left is reused.

    Raises:
        OSError: the lock file cannot be created.
    """
    hold = FileLock(lock, fallback_to_soft=False)
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            hold.acquire(timeout=1)
        except Timeout:
            if not lock.exists():  # filelock takes a file that cannot be created for one of another process
                lock.touch()
            print(f"cfsp: waiting: {why}", file=sys.stderr)
            hold.acquire()
    try:
        yield
    finally:
        # Delete it while it is held: a waiting filelock notices that the file is gone and takes a new one.
        with suppress(OSError):  # a file that stays locks nothing
            lock.unlink(missing_ok=True)
        hold.release()


@contextmanager
def holding_if_possible(lock: Path, why: str, only: set[int] | None = None) -> Iterator[bool]:
    """Hold a lock and yield True. If that fails, report it on stderr, go on without it and yield False.

    only: error numbers (errno) to go on after; others are raised. None: go on after all.
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
