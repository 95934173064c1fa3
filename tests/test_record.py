"""Records: named by what was computed, whole or not there."""

import json
from pathlib import Path

import pytest
import studies

from cfsp.machine import environment
from cfsp.records.identity import run_id
from cfsp.records.record import Record
from cfsp.storage.atomic import write_json

CONFIG = {"sparsity": 0.2, "model": {"path": "m", "device": "cpu"}, "results": "results", "device": "cpu"}


def test_id_ignores_where_and_how_but_not_what():
    elsewhere = CONFIG | {"results": "other", "device": "cuda", "overwrite": True}
    elsewhere["model"] = CONFIG["model"] | {"device": "cuda"}
    assert run_id(elsewhere) == run_id(CONFIG)
    assert run_id(CONFIG | {"sparsity": 0.3}) != run_id(CONFIG)
    assert run_id(CONFIG | {"model": {"path": "n", "device": "cpu"}}) != run_id(CONFIG)
    assert run_id(CONFIG | {"seed": 1}) != run_id(CONFIG | {"seed": 0})
    assert run_id(dict(reversed(CONFIG.items()))) == run_id(CONFIG)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_no_file_and_keeps_the_old_one(tmp_path, monkeypatch, error):
    path = tmp_path / "records" / "a.json"
    write_json(path, {"old": 1})

    def fail(*_):
        raise error

    monkeypatch.setattr("cfsp.storage.atomic.os.replace", fail)
    with pytest.raises(type(error)):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [*path.parent.iterdir()] == [path]


def test_record_survives_the_disk(tmp_path):
    before = studies.record(**studies.zero_shot(0.7), **studies.latency(0.5), training=studies.training(1.0))
    path = before.save(tmp_path)
    assert path == tmp_path / "records" / f"{before.id}.json"
    assert Record.load(path) == before


def test_published_records_can_be_read():
    found = [*(Path(__file__).parent.parent / "results").rglob("records/*.json")]
    assert found
    assert [Record.load(path).id for path in found] == [path.stem for path in found]


def test_git_state_is_of_the_code(monkeypatch, tmp_path):
    state = environment.git_state()
    if state is not None:  # a source archive has none
        assert len(state["commit"]) == 40
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    assert environment.git_state() is None
