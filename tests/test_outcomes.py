"""Outcomes: kept beside the record, whole, and of the very run."""

import json
from dataclasses import replace

import pytest
import tabled

from cfsp.records.outcome_file import (
    OutcomeFile,
    named_outcomes,
    read_outcomes,
    tidy_outcomes,
    write_outcomes,
)
from cfsp.records.outcomes import Outcomes, item_name
from cfsp.records.record import Metric, Record, read_metrics, write_metrics


def kept(*values, kind="correct", first=0):
    return Outcomes(kind, [item_name(first + place) for place in range(len(values))], [*values])


def record(pruned=(1, 0, 0), dense=(1, 1, 0)):
    """A record with two metrics of the same questions and one without outcomes."""
    made = tabled.record("cfsp", 0.2, 0.5)

    def metrics(values):
        one = Metric(sum(values) / len(values), 0.1, len(values), "higher", {}, outcomes=kept(*values))
        return {"acc/x": one, "acc_norm/x": one, "size": replace(one, outcomes=None)}

    return named_outcomes(replace(made, metrics={"dense": metrics(dense), "pruned": metrics(pruned)}))


def save(made, folder):
    write_outcomes(folder, made)
    return made.save(folder)


def test_they_come_back_as_they_were(tmp_path):
    made = record()
    path = save(made, tmp_path)
    read = Record.load(path)
    assert read == made
    found = read_outcomes(path, read)
    assert found.read("pruned", "acc/x") == kept(1, 0, 0)
    assert found.read("dense", "acc_norm/x") == kept(1, 1, 0)
    assert found.read("dense", "size") is None
    assert len(found.items) == 1  # the metrics share their questions
    assert kept(1, 0, 0).items[0] not in path.read_text()


def test_a_record_without_them_is_readable_and_says_so(tmp_path):
    made = tabled.record("cfsp", 0.2, 0.5)
    assert named_outcomes(made) == made
    path = save(made, tmp_path)
    assert Record.load(path).outcomes is None
    assert not (tmp_path / "outcomes").exists()
    with pytest.raises(ValueError, match="keeps no outcomes of single questions or windows"):
        read_outcomes(path, Record.load(path))


@pytest.mark.parametrize("damage", ["altered", "lost", "another"])
def test_a_file_that_is_not_the_record_s_is_refused(tmp_path, damage):
    made = record()
    path = save(made, tmp_path)
    (file,) = (tmp_path / "outcomes").iterdir()
    if damage == "altered":
        file.write_text(file.read_text().replace("[1,0,0]", "[1,0,1]"))
    elif damage == "lost":
        file.unlink()
    else:
        file.write_text(OutcomeFile.of(record(pruned=(0, 0, 0))).text)
    with pytest.raises(ValueError, match="cannot be read" if damage == "lost" else "altered after"):
        read_outcomes(path, Record.load(path))


def test_a_record_cannot_name_a_file_elsewhere(tmp_path):
    made = record()
    for name in ("../records/x.json", ".hidden.json", ""):
        path = replace(made, outcomes={**made.outcomes, "file": name}).save(tmp_path)
        with pytest.raises(ValueError, match=r"outcomes\.file.*expected the name of a file"):
            Record.load(path)


def test_a_new_result_does_not_touch_the_file_of_a_record_that_is_still_there(tmp_path):
    old, new = record(), record(pruned=(0, 0, 0))
    path = save(old, tmp_path)
    write_outcomes(tmp_path, new)  # killed before the record is written
    assert read_outcomes(path, Record.load(path)).read("pruned", "acc/x") == kept(1, 0, 0)
    (tmp_path / "outcomes" / f".{new.outcomes['file']}.{'0' * 16}.part").write_text("half")
    new.save(tmp_path)
    tidy_outcomes(tmp_path, new)
    assert [one.name for one in (tmp_path / "outcomes").iterdir()] == [new.outcomes["file"]]


def test_the_cache_keeps_them(tmp_path):
    metrics = record().metrics["pruned"]
    write_metrics(tmp_path / "a.json", metrics)
    assert read_metrics(tmp_path / "a.json")["acc/x"].outcomes == kept(1, 0, 0)


def test_what_is_no_outcome_is_refused():
    with pytest.raises(ValueError, match="1 items and 2 values"):
        Outcomes("nats", ["a"], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected 0 or 1"):
        Outcomes("correct", ["a"], [0.5])


@pytest.mark.slow
def test_a_run_keeps_the_windows_of_both_models(cfsp, tmp_path):
    code, *_ = cfsp()
    assert code == 0
    (path,) = (tmp_path / "results" / "records").iterdir()
    made = Record.load(path)
    (name,) = [one for one in made.metrics["dense"] if one.startswith("perplexity/")]
    found = read_outcomes(path, made)
    windows = {model: found.read(model, name) for model in ("dense", "pruned")}
    assert windows["dense"].items == windows["pruned"].items
    assert windows["dense"].values != windows["pruned"].values
    assert windows["dense"].kind == "nats"
    kept_text = (tmp_path / "results" / "outcomes" / made.outcomes["file"]).read_text()
    assert cfsp("overwrite=true")[0] == 0
    again = read_outcomes(path, Record.load(path))
    assert again.read("dense", name) == windows["dense"]  # from the cache
    assert json.loads(kept_text)["record"] == made.id
