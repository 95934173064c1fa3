"""The files of a run: record and model belong together; what killed attempts left goes at the next start."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from cfsp.checkpoints import save as checkpoints
from cfsp.checkpoints.save import alone_in
from cfsp.records.failures import Failure
from cfsp.running.run_files import RunFiles
from cfsp.storage import locks
from cfsp.storage.atomic import whole_folder
from cfsp.storage.seals import file_checksum as checksum

KEPT = ("evaluation=[]", "save=true")


def pair(results, run_id):
    """The texts of a record and of the one in its model's folder."""
    places = results / "records" / f"{run_id}.json", results / "models" / run_id / "record.json"
    return [place.read_text() if place.exists() else None for place in places]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the results of a finished run with its model are kept, once one was made."""
    return tmp_path_factory.mktemp("finished") / "results"


@pytest.fixture
def made(cfsp, finished, tmp_path):
    """A finished run with its model: the results folder and the id."""
    if not finished.exists():
        assert cfsp(*KEPT)[0] == 0
        shutil.copytree("results", finished)
    shutil.copytree(finished, "results", dirs_exist_ok=True)
    (path,) = (tmp_path / "results" / "records").iterdir()
    record, beside = pair(tmp_path / "results", path.stem)
    assert record == beside
    return tmp_path / "results", path.stem


def test_a_record_that_was_lost_before_it_was_written_is_in_its_models_folder(cfsp, made):
    results, run_id = made
    expected = pair(results, run_id)
    (results / "records" / f"{run_id}.json").unlink()
    code, _, err = cfsp(*KEPT)
    assert code == 0
    assert "read, not run" in err[0]
    assert pair(results, run_id) == expected


def test_a_model_whose_results_are_gone_gets_its_record_again(cfsp, tmp_path):
    assert cfsp("evaluation=[]", "save=kept")[0] == 0
    (before,) = (tmp_path / "results" / "records").iterdir()
    text = before.read_text()
    shutil.rmtree(tmp_path / "results")
    assert cfsp("evaluation=[]", "save=kept")[0] == 0
    assert before.read_text() == text


@pytest.mark.slow
def test_a_record_beside_another_model_is_no_finished_run(cfsp, made, tmp_path):
    results, run_id = made
    other = tmp_path / "other"
    shutil.copytree(results / "models" / run_id, other)
    before, _ = pair(results, run_id)
    code, _, err = cfsp("evaluation=[]", "overwrite=true")
    assert code == 0
    assert f"the model in results/models/{run_id} is of an older record of this run" in err[0]
    code, _, (named, line) = cfsp("evaluation=[]", f"save={other}")
    assert code == 1
    assert named == f"cfsp: {other} is not the model of results/records/{run_id}.json"
    assert "holds a model already; expected an empty folder, or overwrite=true" in line
    code, _, err = cfsp(*KEPT)
    assert code == 0
    assert "read" not in err[0]
    record, beside = pair(results, run_id)
    assert record == beside != before


class Killed(BaseException):
    pass


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("place", ["cfsp.checkpoints.save.whole_folder", "cfsp.records.record.Record.save"])
def test_overwriting_that_is_killed_leaves_a_pair_or_only_a_model(cfsp, made, place, monkeypatch):
    results, run_id = made

    def killed(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(Killed):
            cfsp(*KEPT, "overwrite=true")
    record, beside = pair(results, run_id)
    assert record is None
    assert cfsp(*KEPT)[0] == 0
    assert pair(results, run_id) == [beside, beside]


def leave(results, run_id):
    """What runs leave that are killed in the middle of their writes, as they name it."""
    model, record = results / "models" / run_id, results / "records" / f"{run_id}.json"
    with whole_folder(model.with_name("new")) as part:
        tag = part.name.split(".")[-2]
    left = [model.with_name(f".{run_id}.{tag}.part"), model.with_name(f".{run_id}.{tag}.old")]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    left.append(record.with_name(f".{record.name}.{tag}.part"))
    left.append(results / "recovery" / run_id / "checkpoint-2" / "optimizer.pt")
    left.append(results / f".{run_id}.lock")
    left.append(model.with_name(f".{run_id}.lock"))
    for file in left[2:]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    shutil.rmtree(model.with_name("new"))
    return left


@pytest.mark.parametrize("again", [(), ("overwrite=true",)])
def test_what_killed_saves_left_goes_at_the_next_start(cfsp, made, again):
    results, run_id = made
    left = leave(results, run_id)
    assert cfsp(*KEPT, *again)[0] == 0
    assert not [path for path in left if path.exists()]
    assert {path.name for path in (results / "models").iterdir()} == {run_id}
    assert not [*(results / "recovery").iterdir()]


def lose(path):
    path.unlink()


def cut_short(path):
    """As a power cut does, which keeps the time of the file."""
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-4])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (lose, "model.safetensors", "holds no model"),
        (cut_short, "model.safetensors", "model.safetensors is not as it was saved"),
        (change, "model.safetensors", "model.safetensors is not as it was saved"),
        (change, "config.json", "config.json is not as it was saved"),
        (lose, "tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_a_saved_model_that_was_damaged_is_named_and_made_anew(cfsp, made, damage, name, said, tmp_path):
    results, run_id = made
    model = results / "models" / run_id
    expected = (model / "model.safetensors").read_bytes()
    damage(model / name)
    other = shutil.copytree(model, tmp_path / "other")
    code, _, (named, line, *_) = cfsp("evaluation=[]", f"save={other}")
    assert code == 1
    assert said in named
    assert "holds a model already; expected an empty folder, or overwrite=true" in line
    code, _, err = cfsp(*KEPT)
    assert code == 0
    assert said in err[0]
    assert "read, not run" not in "".join(err)
    assert (model / "model.safetensors").read_bytes() == expected
    assert len(set(pair(results, run_id))) == 1


def test_weights_of_a_finished_run_are_not_read_in_a_sweep(cfsp, made, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoints, "file_checksum", lambda path: read.append(path.name) or checksum(path))
    code, _, err = cfsp(*KEPT)
    assert (code, "read, not run" in err[0]) == (0, True)
    assert "config.json" in read
    assert "model.safetensors" not in read


@pytest.mark.slow
def test_adapters_beside_a_model_are_part_of_it(cfsp, text_file, tmp_path):
    from training import TINY

    arguments = ["recovery=lora", "recovery.parameters.merge=false", "recovery/data=text", *KEPT, *TINY]
    arguments.append(f"recovery.data.sources.text.text.paths={text_file}")
    assert cfsp(*arguments)[0] == 0
    (adapters,) = (tmp_path / "results" / "models").glob("*/adapters/adapter_model.safetensors")
    adapters.unlink()
    code, _, err = cfsp(*arguments)
    assert code == 0
    assert "adapters/adapter_model.safetensors is missing" in err[0]
    assert adapters.is_file()


def test_a_failure_is_stored_while_the_run_is_held(cfsp, monkeypatch):
    held = []

    def save(self, folder):
        held.append((Path(folder) / f".{self.id}.lock").exists())
        return Path(folder) / "failure.json"

    monkeypatch.setattr(Failure, "save", save)
    assert cfsp("evaluation=[]", "calibration.seqlen=65")[0] == 1
    assert held == [True]


def test_what_is_only_read_is_left_as_it_is(cfsp, made):
    """A reader holds no lock, and another process may be at work."""
    results, run_id = made
    record = results / "records" / f"{run_id}.json"
    record.write_text("{")
    assert RunFiles.of(results, run_id, None).finished() is None
    assert RunFiles.of(results, run_id, results / "models" / run_id).finished() is not None
    assert [path.name for path in record.parent.iterdir()] == [record.name]
    assert record.read_text() == "{"


@pytest.mark.parametrize("save", ["true", "."])
def test_a_model_whose_record_was_altered_is_named(cfsp, made, save, monkeypatch, tmp_path):
    results, run_id = made
    model = results / "models" / run_id
    if save == ".":
        model = shutil.copytree(model, tmp_path / "here")
    monkeypatch.chdir(model)
    (model / "record.json").write_text(pair(results, run_id)[1].replace(run_id, "0" * 12))
    code, _, err = cfsp("evaluation=[]", f"save={save}", f"results={results}")
    assert err[0] == f"cfsp: {model} is not the model of {results}/records/{run_id}.json"
    assert code == (save == ".")  # the other place can only be this run's
    assert ("expected an empty folder, or overwrite=true" in err[1]) == (save == ".")


def test_an_old_model_is_put_back_if_the_new_one_never_came(cfsp, made):
    results, run_id = made
    model = results / "models" / run_id
    model.rename(model.with_name(f".{run_id}.0123456789abcdef.old"))
    code, _, err = cfsp(*KEPT)
    assert code == 0
    assert "read, not run" in err[0]
    assert [path.name for path in (results / "models").iterdir()] == [run_id]
    assert len(set(pair(results, run_id))) == 1


def test_what_a_living_run_writes_is_left_alone(cfsp, made, tmp_path, monkeypatch):
    """Another run that saves to the same folder holds the folder's lock."""
    folder = tmp_path / "shared"
    part = folder.with_name(".shared.0123456789abcdef.part")
    inside, over = threading.Event(), threading.Event()

    def saving():
        with alone_in(folder):
            part.mkdir()
            inside.set()
            over.wait(60)
            assert part.exists()
            part.rename(folder)
            shutil.rmtree(folder)

    living = threading.Thread(target=saving)

    class Waiting(FileLock):
        def acquire(self, *args, **options):
            if "timeout" not in options:
                over.set()
            return super().acquire(*args, **options)

    living.start()
    inside.wait(60)
    monkeypatch.setattr(locks, "FileLock", Waiting)
    code, _, err = cfsp("evaluation=[]", f"save={folder}")
    living.join()
    assert code == 0
    assert f"cfsp: waiting: another process writes {folder}" in err
    assert (folder / "config.json").is_file()
    assert not part.exists()


def test_a_failure_goes_whenever_its_finished_run_is_seen(cfsp, made):
    results, run_id = made
    config = json.loads((results / "records" / f"{run_id}.json").read_text())["config"]
    path = Failure.of(ChildProcessError("killed"), run_id, config, "cfsp", None).save(results)
    code, _, err = cfsp(*KEPT)
    assert code == 0
    assert "read, not run" in err[0]
    assert not path.exists()
