"""Run: the whole path from config to record, and every config that is shipped."""

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from cfsp.records.record import Record, record_path
from cfsp.running.build import CONF, build, choices
from cfsp.running.run import run
from cfsp.storage.cache import Cache

GROUPS = ["calibration", "criterion", "allocator", "compensation", "schedule", "evaluation", "model"]


@pytest.fixture
def tiny(tmp_path, tiny_overrides):
    """Compose the shipped config with a tiny model, a tiny text and a folder of its own."""

    def config(*more):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [*tiny_overrides(*more), f"results={tmp_path}/results", *more])

    return config


def test_record_of_a_run(tiny, tmp_path):
    record = run(tiny("sites=[mlp,attention]", "sparsity=0.5", "allocator=uniform"))
    assert record == Record.load(record_path(tmp_path / "results", record.id))
    assert record.parameters["dense"]["sites"] == 2 * (64 * 96 + 32 * 96)  # blocks x (mlp + attention)
    assert record.parameters["pruned"]["sites"] == record.parameters["dense"]["sites"] // 2
    assert record.sparsity["sites"] == 0.5
    assert 0 < record.sparsity["model"] < record.sparsity["blocks"] < 0.5
    assert record.widths["model.layers.0.mlp"] == [64, 32]
    assert record.widths["model.layers.1.attention"] == [2, 1]
    name = "perplexity/files:text.txt"
    assert record.metrics["pruned"][name].value != record.metrics["dense"][name].value
    assert record.metrics["pruned"][name].protocol == record.metrics["dense"][name].protocol
    assert set(record.seconds) == {"load", "dense evaluation", "plan", "surgery", "recovery", "evaluation"}
    assert record.peak_bytes["host"] > 2**20
    assert record.environment["versions"]["torch"] == torch.__version__
    assert record.config["seed"] == 0


def test_a_finished_run_is_read_not_repeated(tiny, monkeypatch):
    first = run(tiny())
    monkeypatch.setattr("cfsp.running.stages.apply", lambda *_: pytest.fail("ran again"))
    assert run(tiny()) == first
    monkeypatch.undo()
    again = run(tiny("overwrite=true"))
    assert again.id == first.id
    assert again.metrics == first.metrics


def test_dense_model_is_measured_once(tiny, monkeypatch, tmp_path):
    from cfsp.evaluation.perplexity import Perplexity

    calls = []
    original = Perplexity.run
    monkeypatch.setattr(Perplexity, "run", lambda *args: calls.append(1) or original(*args))
    run(tiny())
    run(tiny("sparsity=0.4"))
    assert len(calls) == 3  # dense once, pruned twice
    assert len(Cache(tmp_path / "results" / "cache").entries(["metrics"])) == 3
    run(tiny("evaluation.perplexity_text.window=16"))
    assert len(calls) == 5  # another protocol, another dense figure


def test_dense_figures_of_two_models_and_of_two_configs_are_kept_apart(
    tiny, tiny_checkpoint, tmp_path, monkeypatch
):
    name = "perplexity/files:text.txt"
    first = run(tiny("sparsity=0")).metrics["dense"][name]
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    record = run(tiny("sparsity=0", f"model.path={other}"))
    assert record.metrics["dense"][name].value != first.value
    assert record.metrics["dense"][name].value == record.metrics["pruned"][name].value
    moved = tmp_path / "moved"
    shutil.copytree(tiny_checkpoint, moved)
    monkeypatch.setattr("cfsp.evaluation.measure.write_metrics", lambda *_: pytest.fail("measured again"))
    assert run(tiny("sparsity=0", f"model.path={moved}")).metrics["dense"][name] == first


def test_two_evaluators_on_one_text_are_refused(tiny):
    cfg = tiny()
    with open_dict(cfg):
        cfg.evaluation.again = cfg.evaluation.perplexity_text
    with pytest.raises(ValueError, match="two evaluators measure 'bits_per_byte/files:text.txt'"):
        run(cfg)


def test_impossible_widths_are_found_before_anything_is_measured(tiny, tmp_path):
    with pytest.raises(ValueError, match="width of zero units"):
        run(tiny("allocator.round_to=64", "sparsity=0.5"))
    assert not [*(tmp_path / "results").iterdir()]


def test_same_seed_same_outcome(tiny):
    one, other, seeded = (run(tiny("overwrite=true", *more)) for more in ([], [], ["seed=1"]))
    assert one.notes == other.notes
    assert one.metrics == other.metrics
    assert seeded.notes != one.notes  # other calibration windows


def test_no_sparsity_changes_nothing(tiny):
    record = run(tiny("sparsity=0"))
    name = "perplexity/files:text.txt"
    assert record.metrics["pruned"][name].value == record.metrics["dense"][name].value
    assert record.sparsity == {"sites": 0, "blocks": 0, "model": 0}


def test_compensation_reaches_the_model(tiny):
    plain, mean = (run(tiny("sparsity=0.5", f"compensation={name}")) for name in ("none", "mean"))
    assert mean.parameters["pruned"]["model"] == plain.parameters["pruned"]["model"] + 2 * 32  # two biases
    assert mean.widths == plain.widths
    assert mean.metrics["pruned"] != plain.metrics["pruned"]


def test_without_evaluation_a_record_is_still_a_record(tiny):
    assert run(tiny("evaluation=[]")).metrics == {"dense": {}, "pruned": {}}


def test_nothing_is_written_by_a_run_that_fails(tiny, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cfsp.running.stages.apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny())
    assert not (tmp_path / "results" / "records").exists()


TRAINED = [
    "schedule.pruner.tile=4",
    "schedule.training.max_steps=4",
    "schedule.data.window=16",
    "sparsity=0.2",
]
"""What makes an experiment that trains short."""

ROUNDS = [
    "schedule.training.max_steps=12",
    "schedule.data.window=16",
    "recovery/data=stdlib",
    "recovery.data.window=16",
    "recovery.training.max_steps=2",
    "recovery.rounds=1",
]
"""What makes LoRAShear short."""


ROUTED = ("lte", "moefication")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_runs(tiny, name):
    own = ["allocator.round_to=8"] if name.startswith("cfsp") else []  # 128 is too wide here
    own += TRAINED if name == "block_pruning" else []
    own += ["recovery.training.max_steps=2", "recovery.data.window=16"] if name == "hybrid_filled" else []
    own += ROUNDS if name == "lorashear" else []
    own += ["sparsity=0"] if name in ROUTED else []
    own += ["calibration.samples=8"] if name == "refit" else []  # it holds out every 8th
    own += ["schedule.data.window=16", "schedule.training.max_steps=4"] if name == "lte" else []
    cfg = tiny(f"+experiment={name}", "allocator.protect=[]", *own)
    record = run(cfg)
    if name in ROUTED:
        assert record.sparsity["model"] <= 0  # routers are parameters too
        return
    assert 0 < record.sparsity[record.config["sparsity_of"]]
    if not name.endswith("released"):  # which may miss
        assert record.sparsity[record.config["sparsity_of"]] == pytest.approx(0.2, abs=0.12)


HARNESS = pytest.param("evaluation", "zero_shot", marks=pytest.mark.slow)  # it reads all of its tasks


@pytest.mark.quick_cases(13)
@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in GROUPS for name in choices(group) if name != "zero_shot"] + [HARNESS],
)
def test_every_yaml_builds_and_is_small(group, name):
    path = CONF / group / f"{name}.yaml"
    assert len(path.read_text().splitlines()) < 13
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["task=sst2"] if name in ("task", "routing_task") else []
        own += ["sparsity=0"] if name in ("routing", "routed_once", "unchanged") else []
        config = compose("config", [*own, f"{group}={name}"])[group]
    if group == "model":
        return  # loads a model; test_reference.py does
    for node in config.values() if group == "evaluation" else [config]:
        if OmegaConf.missing_keys(node):
            node["conversations" if "conversations" in node else "text"].paths = "a.txt"
        assert type(build(node)).__module__.startswith("cfsp.")


def test_records_are_json_without_nan(tiny, tmp_path):
    record = run(tiny())
    text = record_path(tmp_path / "results", record.id).read_text()
    json.loads(text, parse_constant=pytest.fail)
