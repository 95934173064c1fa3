"""Sweeps that are killed, or meet another one: the records in the end are those of an undisturbed sweep.

Every sweep is `cfsp.cli.main` in a process of its own group, forked from one that has imported everything.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from cfsp import atomic
from cfsp.record import records
from cfsp.tables import compare

SWEEP = ["criterion=wanda_sp,cfsp", "sparsity=0.2,0.5"]
NAME = "perplexity/files:text.txt"
KILLS = 20


@pytest.fixture(scope="module")
def fork():
    """Begin a sweep in a process of its own, that is killed in the middle of one of its writes, if asked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cfsp.run", "cfsp.tables", "rich.console", __name__])
    first = context.Process(target=int)  # waits for the imports
    first.start()
    first.join()

    def begin(folder, arguments, write=None):
        process = context.Process(target=sweep, args=(folder, arguments, write))
        process.start()
        return process

    return begin


def sweep(folder: Path, arguments: list[str], write: int | None) -> None:
    os.setpgid(0, 0)
    import torch

    from cfsp.cli import main

    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if write is not None:
        atomic.os = Fatal(write)
    sys.argv = ["cfsp", "-m", *arguments]
    with open("out.txt", "a") as out, redirect_stdout(out):
        main()


class Fatal:
    """The module `os`, as the atomic writes see it: of one of them the disk gets half, then the end comes."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def __getattr__(self, name: str):
        return getattr(os, name)

    def replace(self, part: Path, path: Path) -> None:
        if self.left == 0:
            os.truncate(part, part.stat().st_size // 2)
            os.killpg(0, signal.SIGKILL)
        self.left -= 1
        os.replace(part, path)


def table(folder: Path) -> list:
    """What a sweep came to: the table, and of each record all that does not speak of time and place."""
    found = [*records(folder / "results" / "records")]
    shown = compare(found, NAME, lambda record: record.config["criterion"]["_target_"]).to_csv()
    return [shown, {record.id: (record.metrics, record.widths, record.notes) for record in found}]


def leftovers(folder: Path) -> list[Path]:
    """Files that look like results and are none."""
    results = folder / "results"
    return [*results.rglob("*.broken"), *results.glob("failures/*"), *results.glob("records/.*")]


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_random_ends_as_if_it_had_not_been(fork, tmp_path, tiny_overrides):
    arguments = [*tiny_overrides(), *SWEEP]
    start = time.monotonic()
    fork(tmp_path / "undisturbed", arguments).join()
    whole = time.monotonic() - start
    expected = table(tmp_path / "undisturbed")
    assert len(expected[1]) == 4

    dice, kills, number = random.Random(0), 0, 0
    while kills < KILLS:  # a sweep that gets through before it is killed is followed by one in a new folder
        folder = tmp_path / f"killed{number}"
        by_write = dice.random() < 0.5
        process = fork(folder, arguments, dice.randrange(10) if by_write else None)
        process.join(None if by_write else dice.uniform(0, whole / 2))
        if process.is_alive():
            with suppress(ProcessLookupError):  # not yet the head of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.exitcode == 0
            assert table(folder) == expected
            number += 1
    last = fork(folder, arguments)
    last.join()
    assert last.exitcode == 0
    for folder in tmp_path.glob("killed*"):
        assert table(folder) == expected
        assert not leftovers(folder)


@pytest.mark.slow
def test_two_sweeps_on_one_folder_make_every_run_once(fork, tmp_path, tiny_overrides):
    arguments = [*tiny_overrides(), *SWEEP, "logger=jsonl"]
    pair = [fork(tmp_path / "both", arguments) for _ in range(2)]
    for process in pair:
        process.join()
        assert process.exitcode == 0
    logs = [*(tmp_path / "both" / "results" / "logs").iterdir()]
    assert len(logs) == len([*records(tmp_path / "both" / "results" / "records")]) == 4
    for log in logs:
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert (events.count("begin"), events.count("end")) == (1, 1)
    assert len((tmp_path / "both" / "out.txt").read_text().split()) == 8  # both sweeps name all records
    assert not [*(tmp_path / "both").rglob("*.lock")]
    assert not leftovers(tmp_path / "both")
