"""Loggers: several at once, closed whatever happens, and never a reason for a run to end."""

import errno
import json

import pytest
import wandb

from cfsp.loggers.base import Job, Log
from cfsp.loggers.jsonl import Jsonl
from cfsp.loggers.wandb import Wandb, default_mode


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    """No account of W&B that whoever runs the tests may have."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def events(tmp_path):
    (path,) = (tmp_path / "results" / "logs").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_follows_the_run(cfsp, tmp_path):
    assert cfsp("logger=jsonl")[0] == 0
    begin, dense, pruned, end = events(tmp_path)
    assert (begin["event"], end["event"], end["finished"]) == ("begin", "end", True)
    (record,) = (tmp_path / "results" / "records").iterdir()
    assert begin["id"] == record.stem
    metrics = json.loads(record.read_text())["metrics"]
    name = "perplexity/files:text.txt"
    assert dense["values"][f"dense/{name}"] == metrics["dense"][name]["value"]
    assert pruned["values"][f"pruned/{name}"] == metrics["pruned"][name]["value"]


def test_a_failed_run_is_closed_as_one(cfsp, tmp_path):
    assert cfsp("logger=jsonl", "calibration.seqlen=65")[0] == 1
    assert events(tmp_path)[-1]["finished"] is False


@pytest.fixture
def codes(monkeypatch):
    """Exit codes that W&B runs are finished with."""
    found = []
    finish = wandb.Run.finish

    def spy(self, exit_code=None, **options):
        found.append(exit_code)
        return finish(self, exit_code, **options)

    monkeypatch.setattr(wandb.Run, "finish", spy)
    return found


def gone(*_, **__):
    raise ConnectionResetError("Connection lost")


@pytest.mark.slow
def test_wandb_is_told_that_a_run_failed(cfsp, codes):
    assert cfsp("logger=wandb", "calibration.seqlen=65")[0] == 1
    assert codes == [1]


@pytest.mark.slow
def test_a_run_that_wandb_followed_no_longer_ends_there_as_it_ended_here(cfsp, codes, monkeypatch):
    def fail(*_):
        raise ValueError("in the middle")

    monkeypatch.setattr(Wandb, "log", gone)
    monkeypatch.setattr("cfsp.running.stages.apply", fail)
    code, _, err = cfsp("logger=wandb")
    assert code == 1
    assert "Wandb stops following this run, which goes on" in err[0]
    assert err[-1] == "cfsp: error: in the middle"
    assert codes == [1]


@pytest.mark.slow
def test_wandb_ends_a_run_whose_record_it_does_not_take(cfsp, codes, monkeypatch):
    monkeypatch.setattr(Wandb, "tell", gone)
    assert cfsp("logger=wandb")[0] == 0
    assert codes == [0]


def test_wandb_without_a_key_is_offline_and_whole(cfsp, tmp_path, monkeypatch):
    told = {}
    original = wandb.init

    def spy(**options):
        run = original(**options)
        told.update(options, run=run, logged=[])
        log = run.log
        monkeypatch.setattr(run, "log", lambda values: told["logged"].append(values) or log(values))
        return run

    monkeypatch.setattr(wandb, "init", spy)
    code, _, err = cfsp("logger=[wandb,jsonl]", "logger.wandb.tags=[a]", "logger.wandb.project=mine")
    assert (code, err) == (0, [])
    assert (told["mode"], told["project"], told["tags"]) == ("offline", "mine", ["a"])
    (record,) = (tmp_path / "results" / "records").iterdir()
    assert told["id"] == record.stem
    logged = {name for values in told["logged"] for name in values}
    assert {"dense/perplexity/files:text.txt", "pruned/perplexity/files:text.txt", "kept"} <= logged
    assert [*(tmp_path / "results" / "wandb").glob("offline-run-*/*.wandb")]
    assert len(events(tmp_path)) == 4


@pytest.mark.slow
def test_a_service_that_does_not_answer_ends_nothing(cfsp, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, out, err = cfsp("logger=wandb", "logger.wandb.timeout=2")
    assert code == 0
    assert any("the run is kept offline" in line for line in err)
    assert (tmp_path / out.splitlines()[-1]).is_file()


@pytest.mark.slow
def test_a_service_that_goes_away_in_the_middle_ends_nothing(cfsp, monkeypatch, tmp_path):
    monkeypatch.setattr(Wandb, "log", gone)
    code, out, err = cfsp("logger=[wandb,jsonl]")
    assert code == 0
    assert err == [
        "cfsp: Wandb stops following this run, which goes on (ConnectionResetError('Connection lost'))"
    ]
    assert (tmp_path / out.splitlines()[-1]).is_file()
    assert [event["event"] for event in events(tmp_path)] == ["begin", "values", "values", "end"]


def test_every_logger_is_closed_whatever_another_one_raises(tmp_path):
    told = []

    class Full(Jsonl):
        def write(self, **event):
            told.append(event["event"])
            if event["event"] == "end":
                raise OSError(errno.ENOSPC, "No space left on device")

    class Broken(Jsonl):
        def open(self, job):
            raise TypeError("a fault of the program")

    with Log([Full(), Full()], Job("a", {}, tmp_path)):
        pass
    assert told == ["begin", "begin", "end", "end"]
    told.clear()
    with (
        pytest.raises(TypeError, match="a fault of the program"),
        Log([Full(), Broken()], Job("a", {}, tmp_path)),
    ):
        pytest.fail("began")
    assert told == ["begin", "end"]


def test_the_mode_follows_the_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert default_mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n login user\n password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert default_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert default_mode() == "online"
    with pytest.raises(ValueError, match=r"logger\.wandb\.mode='on': expected one of auto, online"):
        Wandb(project="cfsp", mode="on")


def test_a_logger_that_is_not_installed(cfsp, monkeypatch):
    monkeypatch.setattr("cfsp.loggers.tensorboard.find_spec", lambda name: None)
    code, _, err = cfsp("logger=tensorboard")
    said = "cfsp: error: logger=tensorboard: the package is not installed; pip install tensorboard"
    assert (code, err) == (1, [said])


def test_tensorboard(cfsp, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cfsp("logger=tensorboard")[0] == 0
    (folder,) = (tmp_path / "results" / "tensorboard").iterdir()
    seen = EventAccumulator(str(folder))
    seen.Reload()
    assert "pruned/perplexity/files:text.txt" in seen.Tags()["scalars"]
