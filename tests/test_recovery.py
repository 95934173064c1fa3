"""Recovery: what is trained, for what, and that it survives what happens to long runs."""

import copy
import json
from logging import getLogger
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import functional as F
from training import CHANGE, TINY, run

import cfsp
from cfsp.checkpoints.load import local_device
from cfsp.records.record import Record
from cfsp.running.build import CONF, build, choices
from cfsp.training.base import Change
from cfsp.training.distillation import Distillation
from cfsp.training.full import Full
from cfsp.training.lora import Lora
from cfsp.training.next_token import NextToken
from cfsp.training.trainer import SKIPS, Watch


@pytest.mark.parametrize("parameters", [Full(), Lora(rank=4, alpha=8, dropout=0.0)])
def test_training_lowers_the_loss(parameters, tiny, tokenizer, trained_with, tmp_path):
    found = run(
        trained_with(parameters, max_steps=40, evaluate_every=10, learning_rate=5e-3),
        tiny,
        tokenizer,
        tmp_path / "x",
    )
    looks = found.training["held_out_curve"]
    assert looks[-1]["loss"] < looks[0]["loss"] - 0.05
    assert found.training["steps"] == 40
    assert found.training["tokens"] == 40 * 4 * 16
    assert found.training["curve"][-1]["loss"] < found.training["curve"][0]["loss"]
    assert not any(weight.grad is not None for weight in found.model.parameters() if not weight.requires_grad)


def test_the_best_model_counts_and_training_stops_early(tiny, tokenizer, trained_with, tmp_path):
    recovery = trained_with(max_steps=60, evaluate_every=2, learning_rate=0.5, patience=2)
    found = run(recovery, tiny, tokenizer, tmp_path / "x")
    looks = {look["step"]: look["loss"] for look in found.training["held_out_curve"]}
    assert found.training["stopped_early"]
    assert found.training["steps"] < 60
    assert found.training["best_step"] == min(looks, key=looks.get)
    _, held_out = recovery.prepare(found.model, tokenizer, ())
    batch = recovery.data.collator(tokenizer)(held_out)
    with torch.no_grad():
        assert found.model(**batch).loss.item() == pytest.approx(min(looks.values()), rel=1e-3)


def test_tied_weights_are_not_said_to_be_missing(tiny, tokenizer, trained_with, tmp_path, caplog):
    tied = type(tiny)(type(tiny.config)(**{**tiny.config.to_dict(), "tie_word_embeddings": True}))
    getLogger("transformers").addHandler(caplog.handler)  # transformers' loggers do not propagate
    try:
        found = run(trained_with(max_steps=4), tied, tokenizer, tmp_path / "x")
    finally:
        getLogger("transformers").removeHandler(caplog.handler)
    assert found.model.lm_head.weight is found.model.model.embed_tokens.weight
    assert "missing keys" not in caplog.text


@pytest.mark.parametrize(
    "objective",
    [NextToken(), Distillation(label_weight=0.5, logit_weight=1, hidden_weight=5, temperature=2)],
    ids=["next_token", "distillation"],
)
def test_accumulation_changes_memory_not_the_result(objective, tiny, tokenizer, trained_with, tmp_path):
    dense = copy.deepcopy(tiny)
    with torch.no_grad():
        dense.model.embed_tokens.weight.mul_(torch.linspace(0.2, 5, len(tokenizer))[:, None])
    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        recovery = trained_with(objective=objective, batch_size=batch, accumulation=accumulation, held_out=0)
        found = run(recovery, copy.deepcopy(tiny), tokenizer, tmp_path / f"{batch}", dense)
        weights.append(found.model.lm_head.weight)
    torch.testing.assert_close(*weights, atol=2e-5, rtol=1e-3)


def test_distilling_from_itself_is_at_its_goal(tiny):
    batch = {
        "input_ids": torch.arange(3, 23).view(2, 10),
        "attention_mask": torch.ones(2, 10),
        "labels": torch.arange(3, 23).view(2, 10),
    }
    objective = Distillation(label_weight=0, logit_weight=1, hidden_weight=1, temperature=2)
    assert objective.loss(tiny, batch, copy.deepcopy(tiny), CHANGE, None).item() == pytest.approx(0, abs=1e-6)
    labels = Distillation(label_weight=1, logit_weight=1, hidden_weight=0, temperature=2)
    expected = tiny(**batch).loss.item()
    assert labels.loss(tiny, batch, copy.deepcopy(tiny), CHANGE, None).item() == pytest.approx(expected)


def test_distillation_in_closed_form(tiny, tiny_checkpoint):
    torch.manual_seed(1)
    dense = copy.deepcopy(tiny)
    with torch.no_grad():
        for weight in dense.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    ids = torch.arange(3, 23).view(2, 10)
    labels = ids.clone()
    labels[0, :6] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    ours, theirs = tiny(ids, output_hidden_states=True), dense(ids, output_hidden_states=True)
    counted = labels[:, 1:] != -100
    p = F.softmax(theirs.logits[:, :-1][counted] / 2, dim=-1)
    q = F.log_softmax(ours.logits[:, :-1][counted] / 2, dim=-1)
    expected = 4 * (p * (p.log() - q)).sum(-1).mean()
    objective = Distillation(label_weight=0, logit_weight=1, hidden_weight=0, temperature=2)
    torch.testing.assert_close(objective.loss(tiny, batch, dense, CHANGE, None), expected)
    errors = []
    for place in (1, 2):
        a, b = (output.hidden_states[place][:, :-1][counted] for output in (ours, theirs))
        errors.append((((a - b) ** 2).sum(-1) / (b**2).sum(-1)).mean())
    objective = Distillation(label_weight=0, logit_weight=0, hidden_weight=3, temperature=1)
    torch.testing.assert_close(objective.loss(tiny, batch, dense, CHANGE, None), 3 * sum(errors) / 2)


def test_without_its_last_block_a_model_is_held_to_the_last_normed_state(tiny):
    shorter = copy.deepcopy(tiny)
    shorter.model.layers = shorter.model.layers[:1]
    shorter.config.num_hidden_layers = 1
    batch = {"input_ids": torch.arange(3, 23).view(2, 10), "labels": torch.arange(3, 23).view(2, 10)}
    ours, theirs = (
        one(batch["input_ids"], output_hidden_states=True).hidden_states[-1][:, :-1]
        for one in (shorter, tiny)
    )
    expected = (((ours - theirs) ** 2).sum(-1) / (theirs**2).sum(-1)).mean()
    objective = Distillation(label_weight=0, logit_weight=0, hidden_weight=1, temperature=1)
    change = Change((0,), (0.0,), None)
    torch.testing.assert_close(objective.loss(shorter, batch, tiny, change, None), expected)


def test_hidden_states_need_an_uncut_stream():
    objective = Distillation(label_weight=0, logit_weight=1, hidden_weight=1, temperature=1)
    with pytest.raises(ValueError, match="hidden_weight=0"):
        objective.check(Change((0,), (0.1,), None, residual_cut=True))


def test_nan_is_refused_and_the_last_good_checkpoint_stays(tiny, tokenizer, trained_with, tmp_path):
    calls = []

    class Breaks(NextToken):
        def loss(self, model, inputs, dense, change, labels_in_step):
            loss = super().loss(model, inputs, dense, change, labels_in_step)
            calls.append(model.training)
            return loss * float("nan") if sum(calls) > 4 else loss

    with pytest.raises(ValueError, match=r"step 5: the loss is NaN.*checkpoint-4.*learning_rate"):
        run(trained_with(objective=Breaks()), tiny, tokenizer, tmp_path / "x")
    assert (tmp_path / "x" / "checkpoint-4" / "model.safetensors").is_file()
    assert all(weight.isfinite().all() for weight in tiny.parameters())


def test_infinite_gradients_never_reach_the_weights(tiny, tokenizer, trained_with, tmp_path):
    tiny.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(ValueError, match="step 1: a gradient is NaN or infinite; there was no checkpoint"):
        run(trained_with(), tiny, tokenizer, tmp_path / "x")
    for name, weight in tiny.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("recovery", ["lora", "importance_lora", "full", "distill"])
def test_every_recovery_runs_from_the_command_line(recovery, cli, text_file, tmp_path):
    done = cli(
        f"recovery={recovery}",
        "recovery/data=text",
        f"recovery.data.sources.text.text.paths={text_file}",
        *TINY,
        f"save={tmp_path / 'model'}",
    )
    record = Record.load(done)
    training = record.training
    assert training["steps"] == 6
    assert training["tokens"] == 6 * 4 * 16
    assert training["trainable"] > 0
    assert training["peak_bytes"]["host"] > 0
    assert training["data"] == ["files:text.txt"]
    assert not any((tmp_path / "results" / "recovery").iterdir())
    model, _ = cfsp.load(tmp_path / "model")
    assert model.num_parameters() == record.parameters["pruned"]["model"]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recovery.parameters.targets=[gate_prj]"], "adapters on 'gate_prj'.*did you mean 'gate_proj'"),
        (["recovery.training.batch_size=5000"], "less than one step of batch_size=5000"),
        (["recovery.data.held_out=100000"], "held_out=100000 leaves nothing"),
        (
            ["recovery.data.packing=false", "recovery.data.pad_token='<nope>'"],
            "'<nope>' is no token",
        ),
        (["recovery.data.window=4096"], "recovery.data.window=4096: the model has 64 positions"),
        (["recovery=importance_lora", "allocator=uniform"], "nothing here measures"),
        (
            ["recovery=importance_lora", "allocator=uniform", "criterion=depth", "sites=[block]"],
            "criterion.metric=angular",
        ),
        (["recovery.training.precision=fp16"], "a CPU trains in float32 or bfloat16; expected bf16 or null"),
        (["+recovery.training.arguments.fsdp=true"], "arguments.fsdp: one process has nothing to share"),
        (["recovery.parameters.merge=false"], "expected save=true, save=FOLDER or merge=true"),
        (["recovery.parameters.rank=0"], "rank=0"),
        (["+recovery.training.arguments.fdsp=full_shard"], "fdsp"),
    ],
)
def test_bad_input_is_one_line_before_training(overrides, message, cli, text_file, tmp_path):
    recovery = [] if any(one.startswith("recovery=") for one in overrides) else ["recovery=lora"]
    data = ["recovery/data=text", f"recovery.data.sources.text.text.paths={text_file}"]
    with pytest.raises(ValueError, match=message):
        cli(*recovery, *data, "recovery.data.window=16", *overrides)
    assert not list(tmp_path.glob("results/recovery/*/checkpoint*"))


def test_a_scaler_may_skip_steps_but_not_all_of_them(tmp_path):
    module = torch.nn.Linear(2, 2)
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=3)

    def step(watch, value):
        module.weight.grad = torch.full_like(module.weight, value)
        watch.on_pre_optimizer_step(args, state, None, model=module)

    scaled = Watch(lambda *_: None, scaled=True)
    for value in [float("inf")] * SKIPS + [1.0] + [float("nan")] * SKIPS:
        step(scaled, value)
    with pytest.raises(ValueError, match="a gradient is NaN or infinite"):
        step(scaled, float("inf"))
    with pytest.raises(ValueError, match="a gradient is NaN or infinite"):
        step(Watch(lambda *_: None), float("inf"))


@pytest.mark.parametrize(
    ("asked", "rank", "expected"),
    [("cuda", "1", "cuda:1"), ("cuda", None, "cuda"), ("cuda:0", "1", "cuda:0"), ("cpu", "1", "cpu")],
)
def test_each_process_has_a_gpu_of_its_own(asked, rank, expected, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert local_device(asked) == expected


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", ["", "parameters", "objective", "data", "training"])
def test_every_yaml_builds_and_is_small(part):
    group = f"recovery/{part}".rstrip("/")
    for name in choices(group):
        lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
        assert len([line for line in lines if not line.startswith("  ")]) <= 16  # beside what sources hold
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*(["recovery=lora", "task=sst2"] if part else []), f"{group}={name}"])
        for key in OmegaConf.missing_keys(config):
            if key.startswith("recovery."):
                OmegaConf.update(config, key, "a.jsonl")
        assert type(build(config.recovery)).__module__.startswith("cfsp.recovery")


def test_records_of_before_can_be_read(tmp_path, cli):
    path = cli("evaluation=[]")
    data = json.loads(path.read_text())
    del data["training"], data["sha256"]  # they had neither
    path.write_text(json.dumps(data))
    assert Record.load(path).training is None
