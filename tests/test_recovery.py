"""Recovery: what is trained, for what, and that it survives what happens to long runs."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from families import make
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import cfsp
from cfsp.build import CONF, build, choices
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.size import Size
from cfsp.examples import Examples, Prose
from cfsp.loading import REFERENCE, local_device
from cfsp.record import Record, record_path
from cfsp.recovery.base import Change, Setting
from cfsp.recovery.distillation import Distillation
from cfsp.recovery.finetune import Finetune, Training
from cfsp.recovery.full import Full
from cfsp.recovery.lora import Lora, block_ranks
from cfsp.recovery.next_token import NextToken
from cfsp.run import run as run_config
from cfsp.texts import Files
from cfsp.trainer import SKIPS, LossTrainer, Watch, not_finite

CHANGE = Change(blocks=(0, 1), removed=(0.1, 0.3), importance=(0.4, 0.2))
TINY = [
    "recovery.data.window=16",
    "recovery.data.held_out=8",
    "recovery.training.max_steps=6",
    "recovery.training.evaluate_every=2",
    "recovery.training.batch_size=4",
    "recovery.training.warmup=0",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture
def tiny(tiny_checkpoint):
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint)


@pytest.fixture
def trained_with(text_file):
    """A recovery that is small enough to run in a moment."""

    def recovery(parameters=None, objective=None, held_out=8, window=16, **options):
        defaults = {
            "epochs": 1,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "batch_size": 4,
            "accumulation": 1,
            "warmup": 0,
            "scheduler": "linear",
            "weight_decay": 0.0,
            "evaluate_every": 2,
            "patience": None,
        }
        return Finetune(
            parameters=parameters or Full(),
            objective=objective or NextToken(),
            data=Examples(
                sources={"text": Prose(Files(str(text_file)))},
                weights=None,
                window=window,
                packing=True,
                held_out=held_out,
                seed=0,
            ),
            training=Training(**{**defaults, **options}),
            seed=0,
        )

    return recovery


@pytest.fixture
def cli(tiny_overrides, tmp_path):
    """Run overrides on a tiny model; the path of the record."""

    def call(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*tiny_overrides(*overrides), f"results={tmp_path}/results", *overrides])
        return record_path(cfg.results, run_config(cfg).id)

    return call


def run(recovery, model, tokenizer, folder, dense=None, change=CHANGE):
    examples = recovery.prepare(model, tokenizer, {"block_angular"})
    return recovery.run(Setting(model, tokenizer, change, folder, dense), examples)


@pytest.mark.parametrize("seed", range(20))
def test_ranks_sum_to_the_total_and_follow_the_weights(seed):
    weights = torch.rand(12, generator=torch.Generator().manual_seed(seed)).square().tolist()
    ranks = block_ranks(weights, total=96, least=2)
    assert sum(ranks) == 96
    assert min(ranks) >= 2
    order = sorted(range(12), key=weights.__getitem__)
    assert [ranks[block] for block in order] == sorted(ranks)
    free = [block for block in range(12) if ranks[block] > 3]
    exact = (96 - 2 * (12 - len(free))) / sum(weights[block] for block in free)
    assert all(abs(ranks[block] - weights[block] * exact) < 3 for block in free)


def test_ranks_in_closed_form():
    assert block_ranks([1, 2, 3], total=12, least=1) == [2, 4, 6]
    assert block_ranks([0, 0, 5], total=12, least=1) == [1, 1, 10]
    assert block_ranks([1, 1, 1], total=10, least=1) == [4, 3, 3]
    with pytest.raises(ValueError, match="not all of them 0"):
        block_ranks([0.0, 0.0], total=4, least=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "phi3", "gemma3_text"])
@pytest.mark.parametrize("proportional_to", ["uniform", "importance", "removed"])
def test_adapters_have_the_ranks_of_their_blocks(name, proportional_to):
    model = make(name)
    count = len(cfsp.layouts.block_modules(model))
    change = Change(tuple(range(count)), (0.1,) * (count - 1) + (0.5,), (0.6,) + (0.1,) * (count - 1))
    lora = Lora(rank=4, alpha=8, dropout=0.0, proportional_to=proportional_to)
    before = {path: model.get_submodule(path).weight.shape for paths in lora.layers(model) for path in paths}
    module, notes = lora.attach(model, change)
    assert sum(notes["ranks"]) == 4 * count
    for paths, rank in zip(lora.layers(module.get_base_model()), notes["ranks"], strict=True):
        for path in paths:
            if path in before:
                layer = module.get_base_model().get_submodule(path)
                assert layer.r["default"] == rank
                assert layer.scaling["default"] == pytest.approx(2.0)
    trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    expected = 0
    for path, shape in before.items():
        block = next(int(part) for part in path.split(".") if part.isdigit())
        expected += notes["ranks"][block] * sum(shape)
    assert trainable == expected


def test_merged_adapters_compute_the_same(tiny, tokenizer, trained_with, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    apart = run(trained_with(Lora(**lora, merge=False)), copy.deepcopy(tiny), tokenizer, tmp_path / "a")
    merged = run(trained_with(Lora(**lora)), copy.deepcopy(tiny), tokenizer, tmp_path / "b")
    ids = torch.arange(5, 15)[None]
    assert type(merged.model) is type(tiny)
    assert merged.adapters is None
    assert not any("lora" in name for name, _ in merged.model.named_modules())
    assert not torch.allclose(tiny(ids).logits, merged.model(ids).logits, atol=1e-3)
    torch.testing.assert_close(apart.model(ids).logits, merged.model(ids).logits, atol=1e-4, rtol=1e-4)


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


def test_adapters_kept_apart_are_saved_beside_the_model(cli, text_file, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    done = cli(
        "recovery=lora",
        "recovery.parameters.merge=false",
        "recovery/data=text",
        f"recovery.data.sources.text.text.paths={text_file}",
        *TINY,
        f"save={tmp_path / 'model'}",
    )
    record = Record.load(done)
    model, tokenizer = cfsp.load(tmp_path / "model")
    plain = Record.load(cli("overwrite=true"))
    assert record.parameters == plain.parameters
    assert record.sparsity == plain.sparsity
    assert record.parameters["pruned"]["model"] == model.num_parameters()
    assert record.training["adapters"] == record.training["trainable"] > 0
    with_adapters = PeftModel.from_pretrained(model, tmp_path / "model" / "adapters")
    named = json.loads((tmp_path / "model" / "adapters" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(tmp_path / "model")
    evaluated = Size(context=8).run(with_adapters.get_base_model(), tokenizer)  # adapters are read too
    plain_size = Size(context=8).run(cfsp.load(tmp_path / "model")[0], tokenizer)
    extra = evaluated["parameters"].value - plain_size["parameters"].value
    assert extra == record.training["adapters"]
    assert evaluated["macs_per_token"].value == pytest.approx(plain_size["macs_per_token"].value + extra)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model" / "adapters", trust_remote_code=True)
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(auto(ids).logits, with_adapters(ids).logits)
    assert "FOLDER/adapters" in (tmp_path / "model" / "README.md").read_text()
    evaluator = Perplexity(Files(str(text_file)), 32, 8)
    (name,) = [name for name in record.metrics["pruned"] if name.startswith("perplexity")]
    found = evaluator.run(with_adapters.get_base_model(), tokenizer)[name].value
    assert found == pytest.approx(record.metrics["pruned"][name].value, rel=1e-5)


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

    def start(results):
        command = [sys.executable, "-m", "cfsp", *overrides, f"results={results}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    killed = start(tmp_path / "killed")
    folder = tmp_path / "killed" / "recovery"
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/checkpoint-10/trainer_state.json")) and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "records").exists()
    again = start(tmp_path / "killed")
    out, err = again.communicate()
    assert "going on with the training" in err
    whole = start(tmp_path / "whole")
    expected, _ = whole.communicate()
    found, expected = (Record.load(text.strip()) for text in (out, expected))
    for key in ("steps", "tokens", "best_step", "held_out_curve"):
        assert found.training[key] == expected.training[key], key
    for name, metric in expected.metrics["pruned"].items():
        assert found.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)
    assert not list(folder.iterdir())


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
        (["+recovery.training.arguments.fsdp=true"], "arguments.fsdp: accelerate shards over GPUs"),
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
    assert "the last good checkpoint is" in not_finite("the loss", 7, str(folder))
    assert "checkpoint-6" not in not_finite("the loss", 7, str(folder))
    capsys.readouterr()
    again = run(recovery, copy.deepcopy(tiny), tokenizer, folder)
    assert f"{torn} was not written to its end and is left out" in capsys.readouterr().err
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict())
    assert again.training["held_out_curve"] == first.training["held_out_curve"]


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
        patch.setattr("cfsp.recovery.finetune.outcome", killed)
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


@pytest.mark.parametrize("part", ["", "parameters", "objective", "data", "training"])
def test_every_yaml_builds_and_is_small(part):
    group = f"recovery/{part}".rstrip("/")
    for name in choices(group):
        assert len((CONF / group / f"{name}.yaml").read_text().splitlines()) < 16
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*(["recovery=lora"] if part else []), f"{group}={name}"])
        for key in OmegaConf.missing_keys(config):
            if key.startswith("recovery."):
                OmegaConf.update(config, key, "a.jsonl")
        assert type(build(config.recovery)).__module__.startswith("cfsp.recovery")


def test_records_of_before_can_be_read(tmp_path, cli):
    path = cli("evaluation=[]")
    data = json.loads(path.read_text())
    del data["training"]
    path.write_text(json.dumps(data))
    assert Record.load(path).training is None
