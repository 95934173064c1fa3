"""A pipe that a process reads as a text."""

import os
import subprocess
import time
from pathlib import Path

import pytest


def open_when_read(path: Path, process: subprocess.Popen, seconds: int = 60) -> int:
    """Open a FIFO for writing as soon as the process has opened it for reading."""
    for _ in range(10 * seconds):
        assert process.poll() is None
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            time.sleep(0.1)
    return pytest.fail("the process never read the text")
