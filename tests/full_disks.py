"""A disk that is full, without one to mount."""

import resource
from contextlib import contextmanager

BIG = "cannot be written (File too large); expected more free space there, or another folder"


@contextmanager
def files_of_at_most(size):
    """Let the system refuse to write beyond a size, as a full disk does; nothing has to be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
