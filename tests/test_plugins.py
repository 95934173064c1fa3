"""Parts of a run that live in a package of the user's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import outside
import pytest
import torch
from families import batches, make

import cfsp
from cfsp.model.find_sites import find_sites
from cfsp.plans.subject import Subject
from cfsp.records.identity import run_id
from cfsp.running.plugins import import_plugins, look_here
from cfsp.statistics.cached import collect_once
from cfsp.storage.cache import Cache
from cfsp.storage.code import code_of


@dataclass(frozen=True)
class Wanting(cfsp.Criterion):
    """A criterion whose statistic nobody defined."""

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"input_nothing"})

    def score(self, view, stat):
        return stat["input_nothing"]


def test_an_unknown_statistic_is_named_before_the_model_is_loaded(cli, monkeypatch):
    monkeypatch.setattr("cfsp.running.stages.build", lambda *_: pytest.fail("loaded"))
    with pytest.raises(KeyError, match="needs='input_nothing': expected a set of .*plugins="):
        cli("evaluation=[]", "criterion=chance", "criterion._target_=test_plugins.Wanting")


def collected(cache, model, sites, batches, needs):
    return collect_once(Subject(model, sites, cache), sites, batches, needs)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package in a working directory that nothing else has on its path; forgotten afterwards."""
    outside.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    look_here()
    known = {*cfsp.STATISTICS}
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pruning"]:
        del sys.modules[name]
    for name in {*cfsp.STATISTICS} - known:
        del cfsp.STATISTICS[name]
    cfsp.LAYOUTS.pop("my_llama", None)


@pytest.fixture
def start(tmp_path, tiny_checkpoint, text_file):
    """Start the command in a folder with the package, as a console script: without the folder on the path."""
    outside.write(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "my_llama", "architectures": ["MyForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    common = ["model.path=model", "calibration=text", f"calibration.text.paths={text_file}"]
    common += ["calibration.samples=6", "calibration.seqlen=16"]

    def call(*arguments):
        flags = [argument for argument in arguments if argument.startswith("-")]
        rest = [argument for argument in arguments if not argument.startswith("-")]
        command = [sys.executable, "-m", "cfsp", "--config-dir=conf", *flags, "+experiment=mine"]
        own = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | own
        return subprocess.Popen([*command, *common, *rest], cwd=tmp_path, env=environment, **pipes)

    return call


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out.splitlines()


@pytest.mark.slow
def test_a_run_of_parts_from_outside(start, tmp_path):
    path = finish(start("sparsity=0.25"))[-1]
    record = json.loads((tmp_path / path).read_text())
    widths = [kept for _, kept in record["widths"].values()]
    assert widths[0] == 64 > widths[1]
    assert record["metrics"]["pruned"]["blocks"]["value"] == 2
    assert [*tmp_path.glob("results/cache/statistics/*/input_peak-*.safetensors")]


@pytest.mark.slow
def test_a_killed_sweep_of_them_goes_on_in_other_processes(start, tmp_path):
    killed = start("-m", "sparsity=0.2,0.3")
    while not (done := [*tmp_path.glob("results/records/*.json")]) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = {path: path.read_text() for path in done}
    again = start("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "sparsity=0.2,0.3")
    finish(again)
    assert len([*tmp_path.glob("results/records/*.json")]) == 2
    assert {path: path.read_text() for path in done} == before != {}


def test_where_code_lives_is_not_what_a_run_is():
    config = {"sparsity": 0.2, "plugins": ["my_pruning.families"], "push": "me/model", "private": True}
    assert run_id(config) == run_id({"sparsity": 0.2})


def test_objects_in_python(package):
    import_plugins(["my_pruning.families"])
    from my_pruning.allocators import Last
    from my_pruning.criteria import Peak

    model = make("llama")
    found = cfsp.plan(model, batches(), criterion=Peak(power=2.0), allocator=Last(), sparsity=0.25)
    assert found.edits
    again = cfsp.plan(
        model, batches(), criterion=Peak(), allocator=Last(), schedule="iterative", sparsity=0.25
    )
    assert again.edits
    assert cfsp.LAYOUTS["my_llama"] == cfsp.LAYOUTS["llama"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["my_pruning.nowhere"], "plugins: my_pruning.nowhere cannot be imported .*PYTHONPATH=FOLDER"),
        ("my_pruning", r"plugins='my_pruning': expected a list of modules"),
        (5, "plugins=5: expected a list of modules"),
    ],
)
def test_a_plugin_that_is_none(package, names, message):
    with pytest.raises(ValueError, match=message):
        import_plugins(names)


def test_the_working_directory_hides_nothing(package):
    (package / "torch.py").write_text("raise RuntimeError('the wrong torch')\n")
    look_here()
    assert sys.path[-1] == str(package)


def test_a_statistic_needs_no_entry_and_a_name_of_its_own(package):
    import_plugins(["my_pruning.peaks"])
    model = make("llama")
    sites = find_sites(model)
    found = cfsp.collect(model, sites, batches(), {"input_peak", "input_sq_mean"})[sites[0].name]
    assert (found["input_peak"].square() >= found["input_sq_mean"] - 1e-6).all()
    with pytest.raises(ValueError, match=r"name='input_peak' of .*: my_pruning.peaks.InputPeak has it"):
        type("Other", (cfsp.InputStatistic,), {"name": "input_peak"})


def test_a_statistic_is_kept_under_its_own_code(package):
    import_plugins(["my_pruning.peaks"])
    model, cache = make("llama"), Cache(package / "cache")
    sites = find_sites(model)
    collected(cache, model, sites, batches(), {"input_peak"})
    (entry,) = (package / "cache").rglob("input_peak-*.safetensors")
    assert [*entry.parent.glob("input_mean.safetensors")]  # the pass was made for all
    (package / "my_pruning" / "unread.py").write_text("# another file of the package\n")
    code_of.cache_clear()
    collected(cache, model, sites, batches(), {"input_peak"})
    assert len([*(package / "cache").rglob("input_peak-*.safetensors")]) == 2


def test_code_without_a_file_is_not_kept(tmp_path):
    namespace = {"__name__": "nowhere"}
    exec("from cfsp import InputStatistic\n" + outside.FILES["my_pruning/peaks.py"], namespace)
    assert code_of(namespace["InputPeak"]) is None
    model = make("llama")
    try:
        found = collected(Cache(tmp_path), model, find_sites(model), batches(), {"input_peak"})
    finally:
        del cfsp.STATISTICS["input_peak"]
    assert torch.stack([stat["input_peak"] for stat in found.values()]).isfinite().all()
    assert not [*tmp_path.rglob("*.safetensors")]


def test_an_evaluator_is_named_by_what_it_inherits(package):
    import_plugins(["my_pruning.evaluators"])
    from my_pruning.evaluators import Blocks

    from cfsp.evaluation.perplexity import Perplexity

    inherits = type("Mine", (Perplexity,), {"__module__": "my_pruning.evaluators"})
    assert code_of(inherits) != code_of(Blocks) != code_of(Perplexity)
