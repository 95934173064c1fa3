"""Runs that learn masks: exact size, records that tell trainings apart, restarts, refusals."""

import json

import pytest
from hydra import compose, initialize_config_dir
from killed_runs import killed_and_whole
from labelled import saved_encoder
from omegaconf import MissingMandatoryValue, OmegaConf
from pages import understood
from trained_runs import assert_loads_anywhere, own_text

import cfsp
from cfsp.records.record import Record
from cfsp.running.attempts import one_line
from cfsp.running.build import CONF

SHORT = [
    "schedule=movement",
    "schedule.pruner.tile=4",
    "schedule.pruner.learning_rate=0.3",
    "schedule.training.max_steps=24",
    "schedule.training.batch_size=4",
    "schedule.training.warmup=0",
    "schedule.training.learning_rate=1e-3",
    "schedule.training.evaluate_every=6",
]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("variant", ["hybrid", "struct", "block"])
def test_a_run_removes_exactly_what_is_asked_and_loads_anywhere(cli, text_file, tmp_path, variant):
    words = [*SHORT, *own_text(text_file), f"schedule.pruner.variant={variant}", "sites=[mlp,attention]"]
    record = Record.load(cli(*words, "sparsity=0.5", f"save={tmp_path}/out"))
    assert 0.5 <= record.sparsity["sites"] < 0.58
    assert record.training is None
    training = record.schedule_training
    assert training["steps"] == 24
    assert training["asked"] == pytest.approx(0.5)
    assert 0 <= training["reached"] <= 1
    assert all(point["loss"] > 0 for point in training["held_out_curve"])
    assert (record.density < 0.95) == (variant != "struct")
    assert_loads_anywhere(tmp_path / "out")


@pytest.mark.slow
def test_recovery_comes_after_and_fills_the_zeros(cli, text_file):
    words = [*SHORT, *own_text(text_file), "sites=[mlp,attention]", "sparsity=0.4", "recovery=full"]
    words += ["recovery/data=text", f"recovery.data.sources.text.text.paths={text_file}"]
    words += ["recovery.data.window=16", "recovery.data.held_out=8", "recovery.training.max_steps=4"]
    words += ["recovery.training.batch_size=4", "recovery.parameters.refill=0.01"]
    record = Record.load(cli(*words))
    assert (record.schedule_training["steps"], record.training["steps"]) == (24, 4)
    assert record.training["refilled"] > 0
    assert record.density > 0.999


@pytest.mark.slow
def test_frozen_weights_stay_as_they_are(cli, text_file, tmp_path, tiny):
    words = [*SHORT, *own_text(text_file), "recovery/parameters@schedule.parameters=frozen"]
    words += ["schedule.pruner.mask=budget", "schedule.pruner.variant=struct", "sparsity=0.5"]
    cli(*words, f"save={tmp_path}/out")
    pruned, _ = cfsp.load(tmp_path / "out")
    rows = {tuple(row.tolist()) for row in tiny.model.layers[0].mlp.gate_proj.weight}
    assert {tuple(row.tolist()) for row in pruned.model.layers[0].mlp.gate_proj.weight} <= rows


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(tiny_overrides, text_file, tmp_path):
    words = [*tiny_overrides(), *SHORT, *own_text(text_file), "sites=[mlp,attention]", "sparsity=0.5"]
    words += ["schedule.training.max_steps=120", "schedule.training.by_length=true"]
    found, expected, err = killed_and_whole(words, tmp_path, "*/schedule/checkpoint-18")
    assert "begins anew" not in err
    assert found.widths == expected.widths
    for key in ("steps", "tokens", "reached", "held_out_curve"):
        assert found.schedule_training[key] == expected.schedule_training[key], key
    for name, metric in expected.metrics["pruned"].items():
        assert found.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)
    assert not list((tmp_path / "killed" / "recovery").iterdir())


@pytest.mark.slow
def test_a_classifier_learns_its_masks_from_its_task(task_run, tmp_path):
    path = saved_encoder(tmp_path / "bert")
    code, record, err = task_run(
        f"model.path={path}",
        "sites=[mlp,attention]",
        "sparsity=0.4",
        *SHORT,
        "schedule.pruner.variant=struct",
        "schedule.data.held_out=8",
        "recovery/objective@schedule.objective=next_token",
        "schedule.training.max_steps=150",
        "schedule.training.learning_rate=3e-3",
    )
    assert code == 0, err
    assert record.metrics["pruned"]["accuracy/sst2"].value > 0.9
    assert record.sparsity["sites"] >= 0.4


STRUCT = ["schedule.pruner.variant=struct"]
FROZEN = "recovery/parameters@schedule.parameters=frozen"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule=movement", "criterion=cfsp"], "expected criterion=learned"),
        (["criterion=learned"], "expected a schedule that learns scores: schedule=movement"),
        (["recovery/parameters=frozen", "recovery=full"], "frozen trains nothing; expected"),
        (["schedule=movement", FROZEN, "schedule.pruner.mask=magnitude"], "nothing is trained; expected"),
        (["schedule=movement", *STRUCT, "schedule.training.precision=fp16"], "schedule.training.precision="),
        (["schedule=movement", "compensation=least_squares"], "expected compensation=none"),
        (["schedule=movement", "schedule.pruner.tile=5"], "tile=5: .* expected a tile that divides"),
        (["schedule=movement", "sites=[query_heads]"], "leave 'query_heads' out of sites"),
    ],
)
def test_what_cannot_work_is_refused_before_training(cli, text_file, words, message):
    data = own_text(text_file) if "schedule=movement" in words else []
    with pytest.raises(ValueError, match=message):
        cli("sites=[mlp,attention]", *words, *data, "sparsity=0.3")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("movement", ["sites=[mlp,attention]", "sparsity=0.3"]),
        ("lorashear", ["sites=[mlp,attention]", "sparsity=0.3"]),
        ("routing", ["sites=[mlp]", "sparsity=0"]),
    ],
)
def test_several_processes_are_refused(cli, text_file, monkeypatch, schedule, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in one process; expected no torchrun .*, not WORLD_SIZE=2"):
        cli(f"schedule={schedule}", *words, *own_text(text_file))


def test_masks_that_do_not_close_the_share_are_marked_and_still_cut_exactly(cli, text_file, capsys):
    words = [*SHORT, *own_text(text_file), "schedule.pruner.variant=struct", "sites=[mlp,attention]"]
    record = Record.load(cli(*words, "schedule.pruner.learning_rate=1e-6", "sparsity=0.5"))
    assert record.schedule_training["met"] is False
    assert record.schedule_training["reached"] == 0
    assert record.sparsity["sites"] >= 0.5
    err = capsys.readouterr().err
    assert err.count("cfsp: training masked 0.0% of the sites' parameters, not 50.0%: the scores alone") == 1


@pytest.mark.slow
def test_the_table_names_the_schedule(cli, text_file, capsys):
    from cfsp.cli.tables import main

    record = cli(*SHORT, *own_text(text_file), "sparsity=0.3")
    config = json.loads(record.read_text())["config"]
    assert config["criterion"]["_target_"].endswith("Learned")
    main([str(record.parent)])
    assert "movement" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        "+experiment=block_pruning/squad_v1",
        "'+experiment=[block_pruning/squad_v2,hybrid_filled]' model.path=my/base",
        "+experiment=block_pruning/mnli model.path=my/base",
        "+experiment=block_pruning/cnn_dm model.path=my/base",
        "+experiment=block_pruning task=sst2",
    ],
)
def test_the_papers_recipes_are_understood(words):
    parts = understood(f"cfsp {words}")
    assert parts.schedule.trains
    assert parts.schedule.data.task is not None
    assert parts.schedule.objective.temperature == 2


@pytest.mark.parametrize(
    "recipe", ["block_pruning/squad_v2", "block_pruning/mnli", "block_pruning/cnn_dm", "lte/glue"]
)
def test_a_recipe_for_a_model_of_ones_own_wants_its_path(recipe):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"+experiment={recipe}"])
    assert "model.path" in OmegaConf.missing_keys(config)
    with pytest.raises(MissingMandatoryValue) as error:
        OmegaConf.to_container(config, throw_on_missing=True)
    assert one_line(error.value) == "model.path has no value; expected model.path=..."
