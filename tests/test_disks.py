"""Disks that are full, read-only or without locks: the cache costs its entry, anything else is one line."""

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from full_disks import BIG, files_of_at_most
from training import run

from cfsp.passes.walk import walking
from cfsp.records.record import Record
from cfsp.storage.atomic import Unwritten, replacing, reserve, whole_folder, writing
from cfsp.storage.cache import Cache

FULL = "cannot be written (No space left on device); expected more free space there, or another folder"


@pytest.fixture
def disk(tmp_path):
    """A small disk that is mounted at `disk`; called with the options of mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options):
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mount is not allowed")
        mounted.append(folder)
        return folder

    yield mount
    for one in mounted:
        subprocess.run(["umount", str(one)], check=True)


def error_of(lines):
    (line,) = (line for line in lines if line.startswith("cfsp: error:"))
    return line


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "options", ["size=12k", "size=4k", "size=1m,nr_inodes=6", "ro", "size=1m,nr_inodes=2"]
)
def test_a_cache_without_room_costs_its_entries_alone(cfsp, disk, options):
    cache = disk(options) / "cache"
    code, out, err = cfsp(f"cache={cache}")
    assert code == 0, err
    assert err
    assert all(
        line.startswith(("cfsp: not cached, the run goes on: ", "cfsp: going on without a lock: "))
        for line in err
    )
    assert all(str(cache) in line for line in err)
    assert Record.load(out.splitlines()[-1]).metrics["pruned"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_said_and_costs_nothing(cfsp, monkeypatch, number, tmp_path):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    code, out, err = cfsp("save=true")
    assert code == 0, err
    assert any(line.startswith("cfsp: going on without a lock: results/.") for line in err)
    assert Record.load(out.splitlines()[-1]).metrics["pruned"]
    assert not [*(tmp_path / "results" / "models").glob(".*.part")]


def test_a_cache_that_cannot_be_looked_at_costs_its_entries_alone(monkeypatch, tmp_path, capsys):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    cache = Cache.at(tmp_path / "secret")
    assert cache.get("metrics/a.json", lambda path: path.read_text()) is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "mkdir", denied)
    with cache.alone("metrics/a.json"):
        cache.put("metrics/a.json", lambda part: part.write_text("{}"))
    err = capsys.readouterr().err
    for words in ("is made again", "going on without a lock", "not cached"):
        assert words in err
    assert err.count("Permission denied") == 3


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("size", "place"), [("4k", "records"), ("64k", "models")])
def test_results_without_room_are_one_line(cfsp, disk, size, place):
    folder = disk(f"size={size}")
    code, _, err = cfsp("evaluation=[]", f"results={folder}/results", "cache=off", "save=true")
    assert code == 1
    line = error_of(err)
    assert f"{folder}/results/" in line
    assert FULL in line
    assert not [*folder.rglob("*.part")]


@pytest.mark.parametrize("size", [0, 64, 2048])
def test_files_of_a_cache_that_may_not_grow_cost_its_entries_alone(tmp_path, size, capsys):
    cache = Cache(tmp_path)
    with files_of_at_most(size):
        cache.put("metrics/a.json", lambda part: part.write_bytes(bytes(4096)))
    assert capsys.readouterr().err == f"cfsp: not cached, the run goes on: {tmp_path}/metrics/a.json {BIG}\n"
    assert not cache.has("metrics/a.json")
    assert not [*(tmp_path / "metrics").iterdir()]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("size", "save", "place"), [(1024, "false", "records/"), (16 * 1024, "true", "models/")]
)
def test_results_that_may_not_grow_are_one_line(cfsp, tmp_path, size, save, place):
    arguments = ["evaluation=[]", "cache=off", f"save={save}"]
    with files_of_at_most(size):
        code, _, err = cfsp(*arguments)
    assert code == 1
    assert f"results/{place}" in error_of(err)
    assert BIG in error_of(err)
    assert not [*tmp_path.rglob("*.part")]
    assert cfsp(*arguments)[0] == 0


def test_a_sweep_that_cannot_begin_is_one_line(cfsp, disk):
    folder = disk("ro")
    code, _, err = cfsp("-m", "sparsity=0.2,0.3", "evaluation=[]", f"results={folder}/results")
    assert code == 1
    assert "cannot be written (Read-only file system); expected a folder that can be written" in error_of(err)
    assert "hydra.sweep.dir=FOLDER" in error_of(err)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("save", ["true", "false"])
def test_a_finished_run_on_a_read_only_disk_is_read(cfsp, disk, save):
    folder = disk("size=16m")
    arguments = ["evaluation=[]", f"results={folder}/results", f"save={save}"]
    code, out, _ = cfsp(*arguments)
    assert code == 0
    (folder / "results" / f".{Record.load(out.splitlines()[-1]).id}.lock").touch()  # what a killed run left
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    code, again, err = cfsp(*arguments)
    assert (code, again.splitlines()[-1]) == (0, out.splitlines()[-1])
    assert "read, not run" in err[0]
    code, _, err = cfsp(*arguments, "sparsity=0.4")
    assert code == 1
    assert "expected a folder that can be written" in error_of(err)


def test_a_training_without_room_is_one_line(tiny, tokenizer, trained_with, tmp_path):
    """torch says of it "unexpected pos 93632 vs 93520", as a RuntimeError."""
    weights = sum(weight.nbytes for weight in tiny.parameters())
    with (
        files_of_at_most(int(1.5 * weights)),  # the optimizer's states are twice
        pytest.raises(OSError, match="checkpoint-2 cannot be written .*expected .*free space"),
    ):
        run(trained_with(), tiny, tokenizer, tmp_path / "x")
    run(trained_with(), tiny, tokenizer, tmp_path / "x")


def test_hidden_states_without_room_are_one_line_and_no_bus_error(disk, tiny):
    folder = disk("size=64k")
    ids = torch.arange(3, 3 + 64 * 32).view(64, 32)
    batches = [{"input_ids": part} for part in ids.split(8)]
    with walking(tiny, batches, "disk", folder / "states") as walk:
        with pytest.raises(OSError, match="No space left on device"):
            walk.take([0])
        assert [*folder.rglob("*.bin")]
    assert not [*folder.iterdir()]
    reserve(folder / "small", 4096)
    assert (folder / "small").stat().st_size == 4096


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("no"), KeyError("x")])
def test_what_no_disk_says_is_left_alone(error, tmp_path):
    with pytest.raises(type(error)) as raised, writing(tmp_path / "x"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("write", [replacing, whole_folder, writing])
def test_an_error_of_what_is_read_is_not_blamed_on_what_is_written(write, tmp_path):
    source = tmp_path / "source.txt"
    with pytest.raises(FileNotFoundError) as raised, write(tmp_path / "target"):
        shutil.copyfile(source, tmp_path / "target.txt")
    assert raised.value.filename == str(source)
    assert not isinstance(raised.value, Unwritten)
    with pytest.raises(FileNotFoundError) as raised, write(tmp_path / "target"):
        open(b"source.txt")  # noqa: SIM115
    assert raised.value.filename == b"source.txt"


@pytest.mark.parametrize("name", ["x", "x/inner/file", ".x.0123.part", ".x.0123.part/file", "."])
def test_what_is_in_above_or_a_part_of_the_target_is_the_target(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unwritten, match=r"^x cannot be written \(Permission denied\)"), writing(Path("x")):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))


def test_a_copy_that_finds_no_room_is_of_its_target(tmp_path):
    with pytest.raises(Unwritten, match="^x cannot be written"), writing(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device", "source", None, "x")


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    rename, fsync = Path.rename, os.fsync
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append(to.name) or rename(self, to))
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.fstat(number).st_ino) or fsync(number))
    with whole_folder(tmp_path / "model") as part:
        (part / "adapters").mkdir()
        for name in ("a", "adapters/b"):
            (part / name).write_text("x")
    folder = tmp_path / "model"
    written = {path.stat().st_ino for path in [*folder.rglob("*"), folder]}
    assert {*done[:-1]} == written
    assert done[-1] == "model"


def test_the_innermost_path_is_named_once(tmp_path):
    def fill():
        with writing(tmp_path / "outer"), replacing(tmp_path / "inner") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", str(part))

    with pytest.raises(Unwritten) as raised:
        fill()
    assert str(raised.value) == f"{tmp_path / 'inner'} {FULL}"
    assert raised.value.errno == errno.ENOSPC
    assert not [*tmp_path.iterdir()]
