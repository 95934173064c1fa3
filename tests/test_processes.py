"""Training in several processes, with whole copies of the model and with pieces of it."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import cfsp
from cfsp.records.record import Record
from cfsp.training.arguments import Training
from cfsp.training.sharding import outline, with_weights

TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""What `accelerate launch` sets for a config with fsdp_version: 2."""
pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("sharded_training.py")


def launch(*command, cwd, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cfsp.__file__).parents[1])}
    environment |= variables
    return subprocess.run(
        [*TWO, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_two_processes_train_one_model(tiny_checkpoint, tmp_path, text_file):
    command = [
        "-m",
        "cfsp",
        f"model.path={tiny_checkpoint}",
        "evaluation=[]",
        "recovery=lora",
        "logger=jsonl",
    ]
    command += ["calibration=text", f"calibration.text.paths={text_file}"]
    command += ["calibration.seqlen=16", "calibration.samples=4"]
    command += ["recovery/data=text", f"recovery.data.sources.text.text.paths={text_file}"]
    command += ["recovery.data.window=16", "recovery.data.held_out=4"]
    command += ["recovery.training.max_steps=2", "recovery.training.batch_size=2"]
    path = launch(*command, cwd=tmp_path).stdout.splitlines()[-1]
    training = Record.load(tmp_path / path).training
    assert (training["batch"], training["steps"], training["tokens"]) == (4, 2, 2 * 4 * 16)
    (log,) = (tmp_path / "results" / "logs").iterdir()
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()].count("begin") == 1


def trained(folder, *arguments):
    """What two processes say of a training, and the weights of both."""
    folder.mkdir(exist_ok=True)
    variables = LAUNCHED if arguments[-1] == "launched" else {}
    launch(WORKER, *arguments[:2], folder, *arguments[2:], cwd=folder, **variables)
    return (
        json.loads((folder / "0.json").read_text()),
        [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)],
    )


@pytest.fixture(scope="module", params=["full", "lora"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def in_pieces(kind, tiny_checkpoint, text_file, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("sharded"), tiny_checkpoint, text_file, kind, 4, "sharded")


def test_pieces_train_what_whole_copies_train(kind, in_pieces, tiny_checkpoint, text_file, tmp_path):
    whole, (expected, _) = trained(tmp_path / "whole", tiny_checkpoint, text_file, kind, 4, "whole")
    pieces, states = in_pieces
    assert (whole["sharded"], pieces["sharded"], pieces["left"]) == (False, True, False)
    assert pieces["tied"] == whole["tied"]
    assert pieces["trainable"] == whole["trainable"]
    for state in states:
        assert state.keys() == expected.keys()
        for path, weight in expected.items():
            torch.testing.assert_close(state[path], weight, atol=1e-5, rtol=1e-4)
    assert [row["loss"] for row in pieces["curve"]] == pytest.approx([row["loss"] for row in whole["curve"]])


def test_pieces_go_on_from_their_checkpoint_and_are_there_again(
    kind, in_pieces, tiny_checkpoint, text_file, tmp_path
):
    _, (expected, _) = in_pieces
    folder = tmp_path / "twice"
    way = {"full": "sharded", "lora": "launched"}[kind]  # whole checkpoints, and some in pieces
    trained(folder, tiny_checkpoint, text_file, kind, 2, way)
    (folder / "training" / "checkpoint-2" / "whole.json").write_text('{"ended": false}')
    for _ in ("goes on", "had ended"):
        told, states = trained(folder, tiny_checkpoint, text_file, kind, 4, way)
        assert (told["steps"], told["left"]) == (4, False)
        for state in states:
            for path, weight in expected.items():
                torch.testing.assert_close(state[path], weight, atol=1e-5, rtol=1e-4)


def test_an_outline_has_no_values_and_keeps_ties_and_buffers(tiny_checkpoint):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.lm_head.weight = model.model.embed_tokens.weight
    shape = outline(model)
    assert all(weight.is_meta for weight in shape.parameters())
    assert shape.lm_head.weight is shape.model.embed_tokens.weight
    assert torch.equal(shape.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    values = dict(model.named_parameters())
    again = with_weights(shape, lambda path, weight: values[path].detach())
    ids = torch.arange(3, 23).view(2, 10)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"fsdp": True}, {}, "one process has nothing to share"),
        ({"fsdp": True}, {"WORLD_SIZE": "2"}, "shards over GPUs"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "shards over GPUs"),
        ({"deepspeed": "zero.json"}, {}, "cannot be put together"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "cannot be put together"),
    ],
)
def test_pieces_that_cannot_be_are_refused(arguments, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    training = Training(
        epochs=1, max_steps=None, learning_rate=1e-3, batch_size=1, accumulation=1, warmup=0,
        scheduler="linear", weight_decay=0, evaluate_every=1, patience=None, arguments=arguments,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        training.check(torch.device("cpu"))


@pytest.mark.parametrize("version", [1, 2])
def test_the_older_fsdp_is_refused(version):
    training = Training(
        epochs=1, max_steps=None, learning_rate=1e-3, batch_size=1, accumulation=1, warmup=0,
        scheduler="linear", weight_decay=0, evaluate_every=1, patience=None,
        arguments={"fsdp": True, "fsdp_config": {"version": version}},
    )  # fmt: skip
    refused = (
        nullcontext() if version == 2 else pytest.raises(ValueError, match="FSDP of version 1: expected")
    )
    with refused:
        training.for_trainer(Path(), torch.device("cpu"), seed=0, held_out=True)
