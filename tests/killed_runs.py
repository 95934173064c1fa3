"""A run that is killed in its training, the run that goes on from there, and one that is never killed."""

import os
import signal
import subprocess
import sys
import time

from cfsp.records.record import Record

WAIT = 240
"""Seconds until a checkpoint has to be there."""


def start_run(words, results):
    """Start `cfsp` in a process of its own."""
    command = [sys.executable, "-m", "cfsp", *words, f"results={results}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def killed_and_whole(words, folder, checkpoint):
    """Kill a run as soon as a checkpoint is complete, and run it again; run it elsewhere without a kill.

    checkpoint: pattern below the folder of kept trainings. Returns the records of both, and what the second
    process of the killed run wrote to stderr.
    """
    killed, deadline = start_run(words, folder / "killed"), time.monotonic() + WAIT
    pattern = f"recovery/{checkpoint}/trainer_state.json"
    while not list((folder / "killed").glob(pattern)) and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (folder / "killed" / "records").exists()
    out, err = start_run(words, folder / "killed").communicate()
    whole, _ = start_run(words, folder / "whole").communicate()
    found, expected = (Record.load(text.splitlines()[-1]) for text in (out, whole))
    return found, expected, err
