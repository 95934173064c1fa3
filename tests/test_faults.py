"""Faults of the input, the disk and the clock: named, kept, and no other job's matter."""

import errno
import json
import os
import re
import sys
import time

import pytest

from cfsp.checks import UnknownName
from cfsp.records.failures import Failure, forget, of_sweep
from cfsp.records.record import Record
from cfsp.running import attempts, run, stages
from cfsp.running.sweeps import FILE, outcomes
from cfsp.storage import atomic


@pytest.fixture
def once(monkeypatch):
    """Let a job whose sparsity is 0.3 raise an error, or no longer."""
    original = run.prune

    def fail_with(error):
        def prune(state):
            if error is not None and state.cfg.sparsity == 0.3:
                raise error
            return original(state)

        monkeypatch.setattr(run, "prune", prune)

    return fail_with


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), MemoryError(), KeyError("a fault")])
def test_any_error_is_kept_until_the_run_is_finished(cfsp, once, tmp_path, error):
    once(error)
    code, out, err = cfsp("-m", "sparsity=0.2,0.3,0.4")
    assert code == 1
    assert "3 jobs: 2 made, 1 failed" in out
    (path,) = (tmp_path / "results" / "failures").iterdir()
    failure = json.loads(path.read_text())
    assert failure["id"] == path.stem
    assert failure["error"] == {"type": type(error).__name__, "message": str(error)}
    assert "in prune" in failure["traceback"]
    assert "sparsity=0.3" in failure["command"]
    assert failure["config"]["sparsity"] == 0.3
    assert failure["environment"]["versions"]["torch"]
    assert err[0].startswith(f"cfsp: error: {type(error).__name__}: {' '.join(str(error).split())}")
    assert f"(results/failures/{path.name})" in out
    (sweep,) = (tmp_path / "results" / "sweeps").iterdir()
    assert of_sweep("results", sweep.name) == [path.relative_to(tmp_path)]
    assert not of_sweep("results", "another")
    once(None)
    code, out, err = cfsp("-m", "sparsity=0.2,0.3,0.4")
    assert (code, err) == (0, [])
    assert "3 jobs: 1 made, 2 read" in out
    assert not path.exists()


def test_a_name_that_nothing_has_is_no_fault_of_the_program(cfsp, once):
    once(UnknownName("needs='x': expected a set of input_mean"))
    code, _, err = cfsp("sparsity=0.3", "evaluation=[]")
    assert (code, err) == (1, ["cfsp: error: needs='x': expected a set of input_mean"])


def test_a_failure_that_a_disk_keeps_is_named_and_ends_nothing(tmp_path, monkeypatch, capsys):
    """As on a read-only disk, which does not even say that a file is not there."""

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    path = Failure.of(ValueError("no"), "0123456789ab", {}, "cfsp", None).save(tmp_path)
    monkeypatch.setattr(type(path), "unlink", read_only)
    forget(tmp_path, "ba9876543210")
    assert not capsys.readouterr().err
    forget(tmp_path, "0123456789ab")
    assert (
        capsys.readouterr().err
        == f"cfsp: {path} cannot be deleted; its run is finished (Read-only file system)\n"
    )


def test_full_error_shows_a_sweeps_traceback_and_goes_on(cfsp, once, monkeypatch):
    once(RuntimeError("boom"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, out, err = cfsp("-m", "sparsity=0.3,0.2")
    assert code == 1
    assert "2 jobs: 1 made, 1 failed" in out
    assert "Traceback (most recent call last):" in err
    assert "RuntimeError: boom" in err


def test_a_config_that_does_not_resolve_is_a_failure_too(cfsp, tmp_path):
    code, out, err = cfsp("-m", "sparsity=0.2", "seed=${nowhere},0")
    assert code == 1
    assert "2 jobs: 1 made, 1 failed" in out
    assert "Interpolation key 'nowhere' not found" in err[0]
    assert len([*(tmp_path / "results" / "failures").iterdir()]) == 1


def damaged(text: str, kind: str) -> bytes:
    data = json.loads(text)
    return {
        "half": text[: len(text) // 2].encode(),
        "empty": b"",
        "noise": bytes(range(128, 256)),
        "list": b"[]",
        "number": b"5",
        "another version": json.dumps({**data, "colour": 1}).encode(),
        "older version": json.dumps({key: data[key] for key in data if key != "widths"}).encode(),
        "another run": json.dumps({**data, "id": "abc"}).encode(),
    }[kind]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "kind", ["half", "another version", "another run", "empty", "noise", "list", "number", "older version"]
)
def test_a_record_that_cannot_be_read_is_named_kept_aside_and_made_anew(cfsp, tmp_path, kind):
    _, out, _ = cfsp("evaluation=[]")
    path = tmp_path / out.splitlines()[-1]
    before = Record.load(path)
    broken = damaged(path.read_text(), kind)
    path.write_bytes(broken)
    code, again, err = cfsp("evaluation=[]")
    assert (code, again.splitlines()[-1]) == (0, out.splitlines()[-1])
    (line,) = err
    assert out.splitlines()[-1] in line
    assert line.endswith(f"kept as {path.name}.broken and made anew")
    assert path.with_name(f"{path.name}.broken").read_bytes() == broken
    assert Record.load(path).widths == before.widths


@pytest.mark.parametrize("config", [{"device": None}, {"device": 3}, {}])
def test_a_failure_that_is_written_can_be_read(tmp_path, config):
    failure = Failure.of(ValueError("no"), "0123456789ab", {**config, "seed": 0}, "cfsp", None)
    assert Failure.load(failure.save(tmp_path)) == failure


def test_a_torn_file_of_a_sweep_is_no_good_end(tmp_path):
    (tmp_path / FILE).write_text('{"state": "failed"}\n{"sta')
    with pytest.raises(ValueError, match="is incomplete"):
        outcomes(tmp_path)


class Full:
    """The module `os`, as the atomic writes see it, on a disk that has no room for some files."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, descriptor):
        if self.folder in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("folder", ["/records/", "/results/"])
def test_a_full_disk_is_named_and_leaves_no_half_file(cfsp, tmp_path, monkeypatch, folder):
    full = Full(folder)
    monkeypatch.setattr(atomic, "os", full)
    code, out, err = cfsp("-m", "sparsity=0.2,0.3", "evaluation=[]")
    assert code == 1
    assert "2 jobs: 2 failed" in out
    ids = dict.fromkeys(re.findall(r"records/(\w{12})\.json", " ".join(err)))
    assert len(ids) == 2
    assert [line for line in err if line.startswith("cfsp: error:")] == [
        f"cfsp: error: results/records/{name}.json cannot be written (No space left on device); expected "
        "more free space there, or another folder"
        for name in ids
    ]
    files = [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".part", ".lock"))]
    assert not [*(tmp_path / "results" / "records").iterdir()]
    full.folder = "/nowhere/"
    assert cfsp("-m", "sparsity=0.2,0.3", "evaluation=[]")[0] == 0
    assert not [*(tmp_path / "results").glob("failures/*")]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("now", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_a_clock_that_is_wrong_changes_nothing(cfsp, monkeypatch, now):
    clock = stages.now
    monkeypatch.setattr(stages, "now", lambda: now)
    code, out, err = cfsp("evaluation=[]")
    assert (code, err) == (0, [])
    monkeypatch.setattr(stages, "now", clock)
    code, again, err = cfsp("evaluation=[]")
    assert (code, again.splitlines()[-1]) == (0, out.splitlines()[-1])
    assert err == [f"cfsp: read, not run: the record is of {now}; overwrite=true runs it again"]


def test_what_a_killed_process_left_of_a_record_goes_with_the_next_attempt(cfsp, tmp_path):
    _, out, _ = cfsp("evaluation=[]")
    path = tmp_path / out.splitlines()[-1]
    part = path.with_name(f".{path.name}.0123456789abcdef.part")
    part.write_text("half")
    (tmp_path / "results" / f".{path.stem}.lock").touch()
    assert cfsp("evaluation=[]", "overwrite=true")[0] == 0
    assert {one.name for one in (tmp_path / "results").iterdir()} == {"cache", "records"}
    assert [*path.parent.iterdir()] == [path]


def test_folders_of_killed_sweeps_go_and_those_of_running_ones_stay(tmp_path):
    for name, files, age in [
        ("killed", ["multirun.yaml"], 8),
        ("running", ["multirun.yaml"], 1),
        ("ended", ["multirun.yaml", FILE], 8),
    ]:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        then = time.time() - age * 86400
        os.utime(tmp_path / name, (then, then))
    attempts.remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"running", "ended"}
