"""Restarts: a training that was killed, stopped or torn goes on where it was, or begins anew."""

import copy
import shutil
from itertools import product

import pytest
import torch
from killed_runs import killed_and_whole
from trained_runs import own_text
from training import TINY, run
from transformers import TrainerState

from cfsp.records.record import Record
from cfsp.training.lora import Lora
from cfsp.training.resume import (
    WHOLE,
    checkpoints,
    drop_torn,
    has_ended,
    keep_block,
    mark_whole,
    newest_whole,
    restore_block,
)
from cfsp.training.trainer import LossTrainer, not_finite


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tiny_overrides, text_file, tmp_path):
    overrides = [
        *tiny_overrides(),
        "recovery=full",
        "recovery/data=text",
        f"recovery.data.sources.text.text.paths={text_file}",
        *TINY,
        "recovery.training.max_steps=200",
        "recovery.training.evaluate_every=5",
        "recovery.training.patience=null",
    ]
    found, expected, err = killed_and_whole(overrides, tmp_path, "*/checkpoint-10")
    assert "going on with the training" in err
    for key in ("steps", "tokens", "best_step", "held_out_curve"):
        assert found.training[key] == expected.training[key], key
    for name, metric in expected.metrics["pruned"].items():
        assert found.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)
    assert not list((tmp_path / "killed" / "recovery").iterdir())


@pytest.mark.slow
def test_a_finished_run_leaves_nothing_of_its_training(cfsp, tmp_path, text_file):
    code, out, _ = cfsp(
        "recovery=lora", "recovery/data=text", f"recovery.data.sources.text.text.paths={text_file}", *TINY
    )
    assert code == 0
    assert Record.load(out.splitlines()[-1]).training["steps"] == 6
    assert not [*(tmp_path / "results").rglob(WHOLE)]


def test_a_training_that_had_stopped_is_not_gone_on_with(
    tiny, tokenizer, trained_with, tmp_path, monkeypatch
):
    recovery = trained_with(max_steps=60, evaluate_every=2, learning_rate=0.5, patience=2)
    first = run(recovery, copy.deepcopy(tiny), tokenizer, tmp_path / "x")
    assert first.training["stopped_early"]
    monkeypatch.setattr(LossTrainer, "train", lambda *_, **__: pytest.fail("trained on"))
    again = run(recovery, copy.deepcopy(tiny), tokenizer, tmp_path / "x")
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    for key in ("steps", "best_step", "stopped_early", "tokens", "curve", "held_out_curve"):
        assert again.training[key] == first.training[key], key


def test_adapters_of_a_training_that_had_stopped_are_there_again(tiny, tokenizer, trained_with, tmp_path):
    recovery = trained_with(Lora(rank=4, alpha=8, dropout=0.0), max_steps=40, learning_rate=0.1, patience=1)
    first, again = (run(recovery, copy.deepcopy(tiny), tokenizer, tmp_path / "x") for _ in range(2))
    assert first.training["best_step"] < first.training["steps"] < 40
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict())
    assert not torch.equal(
        again.model.state_dict()["model.layers.0.mlp.up_proj.weight"],
        tiny.state_dict()["model.layers.0.mlp.up_proj.weight"],
    )


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_out(
    tiny, tokenizer, trained_with, tmp_path, capsys
):
    recovery, folder = trained_with(), tmp_path / "x"
    first = run(recovery, copy.deepcopy(tiny), tokenizer, folder)
    torn = folder / "checkpoint-6"
    (torn / "whole.json").unlink()
    (torn / "trainer_state.json").write_text('{"epoch": 0.')
    (torn / "optimizer.pt").unlink()
    assert "the last good checkpoint is" in not_finite("the loss", 7, folder)
    assert "checkpoint-6" not in not_finite("the loss", 7, folder)
    capsys.readouterr()
    again = run(recovery, copy.deepcopy(tiny), tokenizer, folder)
    assert f"{torn} is left out" in capsys.readouterr().err
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict())
    assert again.training["held_out_curve"] == first.training["held_out_curve"]


@pytest.mark.slow
def test_other_data_under_the_same_name_begin_the_training_anew(
    cli, tmp_path, text_file, capsys, monkeypatch
):
    data = tmp_path / "data.txt"
    data.write_text(text_file.read_text())
    overrides = [
        "recovery=full",
        "recovery/data=text",
        f"recovery.data.sources.text.text.paths={data}",
        *TINY,
    ]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cfsp.training.loop.outcome", killed)
        with pytest.raises(KeyboardInterrupt):
            cli(*overrides)
    (folder,) = (tmp_path / "results" / "recovery").iterdir()
    assert (folder / "checkpoint-6" / "whole.json").is_file()
    data.write_text(text_file.read_text().replace("cat", "cow"))
    capsys.readouterr()
    changed = Record.load(cli(*overrides))
    assert "begins anew" in capsys.readouterr().err
    fresh = Record.load(cli(*overrides, "overwrite=true"))
    assert changed.training["held_out_curve"] == fresh.training["held_out_curve"]


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-9] + bytes(1) + path.read_bytes()[-8:]),
}


@pytest.mark.parametrize("parameters", [None, Lora(rank=4, alpha=8, dropout=0.1)])
def test_of_altered_checkpoints_the_older_whole_one_is_gone_on_from(
    parameters, tiny, tokenizer, trained_with, tmp_path, capsys
):
    """Dropout draws from the generators whose states are kept."""
    recovery, folder = trained_with(parameters), tmp_path / "x"
    first = run(recovery, copy.deepcopy(tiny), tokenizer, folder)
    names = {path.name for path in (folder / "checkpoint-6").iterdir()}
    weights = "adapter_model.safetensors" if parameters else "model.safetensors"
    assert {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    for number, (name, damage) in enumerate(product(sorted(names), DAMAGES)):
        again = tmp_path / str(number) / "x"
        shutil.copytree(folder, again)
        DAMAGES[damage](again / "checkpoint-6" / name)
        drop_torn(again)
        assert newest_whole(again) == again / "checkpoint-4", (name, damage)
        assert f"{again / 'checkpoint-6'} is left out" in capsys.readouterr().err
    shutil.copytree(again, tmp_path / "again" / "x")
    second = run(recovery, copy.deepcopy(tiny), tokenizer, tmp_path / "again" / "x")
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict())
    assert second.training["held_out_curve"] == first.training["held_out_curve"]


@pytest.mark.parametrize(
    ("best", "altered", "left"),
    [
        ({2: 2, 4: 2, 6: 2}, [], [6, 4, 2]),
        ({2: 2, 4: 2, 6: 2}, [2], []),  # nothing is left whose best weights are there
        ({2: 2, 4: 4, 6: 4}, [4], [2]),
        ({2: 2, 4: 4, 6: 4}, [6], [4, 2]),
        ({4: 2, 6: 6}, [], [6, 4]),  # what had been the best went when a better one came
        ({4: 2, 6: 6}, [6], [4]),
        ({4: 2, 6: 2}, [], []),  # somebody deleted the best
        ({2: None, 4: None}, [4], [2]),
    ],
)
def test_a_checkpoint_counts_while_its_best_weights_are_there(best, altered, left, tmp_path):
    for step, best_step in best.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = TrainerState(best_model_checkpoint=best_step and f"elsewhere/checkpoint-{best_step}")
        state.save_to_json(str(folder / "trainer_state.json"))
        mark_whole(folder, ended=False)
        assert not has_ended(folder)
    for step in altered:
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    drop_torn(tmp_path)
    assert [int(path.name.removeprefix("checkpoint-")) for path in checkpoints(tmp_path)] == left


def test_a_checkpoint_of_another_run_does_not_count(tmp_path, capsys):
    folder = tmp_path / "one" / "checkpoint-2"
    folder.mkdir(parents=True)
    TrainerState().save_to_json(str(folder / "trainer_state.json"))
    mark_whole(folder, ended=True)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    drop_torn(tmp_path / "two")
    assert "belongs to 'one/checkpoint-2', not to 'two/checkpoint-2'" in capsys.readouterr().err
    assert not checkpoints(tmp_path / "two")
    assert has_ended(newest_whole(tmp_path / "one"))


@pytest.mark.parametrize("name", ["block-0.safetensors", "block-0.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_altered_block_is_tuned_again(name, damage, tmp_path, capsys):
    block, file = torch.nn.Linear(64, 64), tmp_path / "block-0.safetensors"
    keep_block(block, [{"loss": 0.5}], file)
    other = torch.nn.Linear(64, 64)
    assert restore_block(other, file) == [{"loss": 0.5}]
    assert torch.equal(other.weight, block.weight)
    damage(tmp_path / name)
    there, fresh = file.exists(), copy.deepcopy(other.weight)
    assert restore_block(other, file) is None
    assert torch.equal(other.weight, fresh)
    assert ("is made again" in capsys.readouterr().err) == there


TRAINED = {
    "lorashear": ["schedule.pruner.periods=3", "sites=[mlp,attention]", "sparsity=0.5"],
    "movement": ["schedule.pruner.tile=4", "sites=[mlp,attention]", "sparsity=0.5"],
    "routing": ["schedule.pruner.expert_size=4", "sparsity=0"],
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_goes_on_after_its_schedule_has_been_trained(name, cli, text_file, monkeypatch):
    """Whatever stops it later: surgery, recovery, evaluation."""

    def killed(*_):
        raise KeyboardInterrupt

    def timeless(notes):
        return {key: one for key, one in notes.items() if key not in {"seconds", "curve", "peak_bytes"}}

    words = [f"schedule={name}", *TRAINED[name], *own_text(text_file)]
    words += ["schedule.training.max_steps=24", "schedule.training.batch_size=4"]
    words += ["schedule.training.warmup=0", "schedule.training.evaluate_every=12"]
    with monkeypatch.context() as patch:
        patch.setattr("cfsp.training.loop.outcome", killed)
        with pytest.raises(KeyboardInterrupt):
            cli(*words)
    with monkeypatch.context() as patch:
        patch.setattr(LossTrainer, "train", lambda *_, **__: pytest.fail("trained on"))
        again = Record.load(cli(*words))
    whole = Record.load(cli(*words, "overwrite=true"))
    assert again.widths == whole.widths
    assert timeless(again.schedule_training) == timeless(whole.schedule_training)
    for name, metric in whole.metrics["pruned"].items():
        assert again.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)
