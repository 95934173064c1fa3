"""Records: named by what was computed, whole or not there."""

import json

import pytest

from cfsp import record
from cfsp.record import Metric, Record, run_id, write_json

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

    monkeypatch.setattr("cfsp.atomic.os.replace", fail)
    with pytest.raises(type(error)):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [*path.parent.iterdir()] == [path]


def test_record_survives_the_disk(tmp_path):
    metric = Metric(5.5, 0.1, 100, "lower", {"window": 128})
    before = Record(
        id="abc",
        created=record.now(),
        config=CONFIG,
        parameters={"dense": {"model": 10}, "pruned": {"model": 8}},
        sparsity={"model": 0.2},
        widths={"site": [10, 8]},
        unit_cost={"site": 1},
        notes={},
        metrics={"dense": {}, "pruned": {"perplexity/x": metric}},
        seconds={"load": 1.0},
        peak_bytes={"host": 1},
        git=record.git_state(),
        environment={},
    )
    path = before.save(tmp_path)
    assert path == tmp_path / "records" / "abc.json"
    assert Record.load(path) == before


def test_a_file_that_is_no_record(tmp_path):
    (tmp_path / "a.json").write_text('{"id": "a"')
    with pytest.raises(ValueError, match=r"a\.json: no record"):
        Record.load(tmp_path / "a.json")


def test_git_state_is_of_the_code(monkeypatch, tmp_path):
    state = record.git_state()
    if state is not None:  # a source archive has none
        assert len(state["commit"]) == 40
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.git_state() is None
