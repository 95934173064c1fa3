"""The Python face leaves the process that called it as it was, and W&B's current run too."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import wandb
from families import batches, make, words
from hydra import compose, initialize_config_dir
from surroundings import changes, picture

import cfsp
from cfsp.cli.report import report
from cfsp.machine.process import environment_kept, left_as_found
from cfsp.running.build import CONF
from cfsp.running.run import run


@pytest.fixture
def config(tiny_overrides, tmp_path):
    """A run with training, the harness and W&B in it."""
    questions = [{"question": f"is {i} big", "passage": "a cat", "label": i % 2, "idx": i} for i in range(4)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, questions)))
    overrides = [
        *tiny_overrides("evaluation=[]"),
        "evaluation=[perplexity_text,zero_shot]",
        "evaluation.perplexity_text.text.paths=${calibration.text.paths}",
        "evaluation.perplexity_text.window=32",
        "evaluation.zero_shot.tasks=[boolq]",
        f"+evaluation.zero_shot.files.boolq={tmp_path}/boolq.jsonl",
        "recovery=lora",
        "recovery/data=text",
        "recovery.data.sources.text.text.paths=${calibration.text.paths}",
        "recovery.data.window=16",
        "recovery.training.max_steps=2",
        "+recovery.training.arguments.full_determinism=true",
        f"results={tmp_path}/results",
    ]

    def composed(*more):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [*overrides, *more])

    return composed


@pytest.mark.slow
def test_a_run_leaves_the_process_as_it_was(config, tmp_path):
    settings = wandb.Settings(silent=True, console="off")
    mine = wandb.init(project="mine", mode="offline", dir=str(tmp_path), settings=settings)
    torch.manual_seed(11)
    np.random.seed(12)
    before = picture()
    record = run(config("logger=[wandb,jsonl]", "logger.wandb.mode=offline", "save=true"))
    report([tmp_path / "results" / "records"], tmp_path / "page.html", tmp_path / "figures", "title")
    assert changes(before, picture()) == {}
    assert wandb.run is mine
    mine.log({"a": 2})
    mine.finish()
    assert list((tmp_path / "results" / "wandb").glob(f"offline-run-*-{record.id}"))
    assert record.training["steps"] == 2


@pytest.mark.slow
def test_a_failed_run_leaves_it_too_and_the_seed_fixes_everything(config):
    before = picture()
    with pytest.raises(ValueError, match="seqlen"):
        run(config("calibration.seqlen=65"))
    assert changes(before, picture()) == {}
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # the caller's, which is not the run's
        outcomes.append(run(config("overwrite=true", "cache=off")).metrics)
    assert outcomes[0] == outcomes[1]


def test_the_functions_leave_it_too(tmp_path):
    model, tokenizer = make("llama"), words()
    before = picture()
    for criterion in ("cfsp", "taylor", "chance"):
        plan = cfsp.plan(model, batches(), criterion=criterion, allocator="uniform")
    cfsp.collect(model, cfsp.find_sites(model), batches(), {"input_mean"})
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    cfsp.load(tmp_path / "m")
    assert changes(before, picture()) == {}


def test_the_environment_is_given_back_whatever_ends_the_block(monkeypatch):
    monkeypatch.setenv("CFSP_HELD", "before")
    before = dict(os.environ)

    def interrupted():
        with environment_kept(CFSP_HELD="inside", CFSP_NEW="1"):
            assert (os.environ["CFSP_HELD"], os.environ["CFSP_NEW"]) == ("inside", "1")
            del os.environ["CFSP_HELD"]
            os.environ["CFSP_MORE"] = "2"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert dict(os.environ) == before


def test_nothing_that_is_shipped_is_for_tests():
    for file in Path(cfsp.__file__).parent.rglob("*.py"):
        assert "unittest" not in file.read_text(), file


def test_what_is_given_back():
    before = picture()
    with left_as_found():
        transformers.enable_full_determinism(5)
        torch.backends.fp32_precision = "tf32"
        warnings.simplefilter("ignore")
        transformers.TrainingArguments("x", use_cpu=True).n_gpu  # noqa: B018
        transformers.logging.disable_progress_bar()
        assert len(changes(before, picture())) > 5
    assert changes(before, picture()) == {}
