"""Sweeps that are killed, or meet another one: the records in the end are those of an undisturbed sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfsp.records.record import records

SOAK = Path(__file__).parent.parent / "experiments" / "benchmarks" / "kill_soak.py"
SWEEP = ["criterion=wanda_sp,cfsp", "sparsity=0.2,0.5"]


@pytest.mark.slow
def test_sweeps_that_are_killed_end_as_if_they_had_not_been():
    """Inside their file operations: plain, saving, overwriting, training, and with joblib."""
    done = subprocess.run(
        [sys.executable, str(SOAK), "--kills", "20"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["faults"] == 0


@pytest.mark.slow
def test_two_sweeps_on_one_folder_make_every_run_once(tmp_path, tiny_overrides):
    command = [sys.executable, "-m", "cfsp", "-m", *tiny_overrides(), *SWEEP, "logger=jsonl"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    results = tmp_path / "results"
    logs = [*(results / "logs").iterdir()]
    assert len(logs) == len([*records(results / "records")]) == 4
    for log in logs:
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert (events.count("begin"), events.count("end")) == (1, 1)
    assert all("4 jobs: " in one and "failed" not in one for one in said)
    hidden = [path for path in results.rglob(".*") if path.suffix != ".seal"]
    assert not [*hidden, *results.rglob("*.lock"), *results.rglob("*.broken"), *results.glob("failures/*")]
