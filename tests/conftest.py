"""Shared fixtures. The suite runs on CPU, without a network, with one thread per worker."""

import json
import os
import shutil
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from absl.logging import get_absl_handler
from families import FAMILIES, batches, make
from labelled import saved_encoder, toy
from two_stacks import saved_pair, summaries

from cfsp.model.families import LAYOUTS

torch.set_num_threads(1)
# rouge-score imports absl, whose log would close pytest's own stream when Hydra configures logging.
get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the cases of a test that are much like its `quick_cases`, which are spread over them, as slow."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("quick_cases"):
            cases[item.nodeid.split("[")[0]].append(item)
    for found in cases.values():
        (count,) = found[0].get_closest_marker("quick_cases").args
        quick = {place * len(found) // count for place in range(count)}
        for place, item in enumerate(found):
            if place not in quick:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def same_families():
    """A family that a test adds is gone after it."""
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return make(family)


@pytest.fixture
def tokens():
    return batches(count=1)[0]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Enough English to calibrate and evaluate a tiny model on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = "the cat sat on a mat while two dogs ran over many green hills and far away".split()
    path.write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(4000)))
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A folder with a tiny Llama and the reference model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from cfsp.checkpoints.load import REFERENCE

    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_checkpoint, text_file):
    """A folder with the files that the pages speak of."""
    mine = tmp_path / "my"
    shutil.copytree(tiny_checkpoint, mine / "model")
    (mine / "train").mkdir()
    words = text_file.read_text()
    (mine / "train" / "a.jsonl").write_text(f'{{"text": "{words}"}}\n')
    (mine / "test.txt").write_text(words)
    pair = '{"instruction": "Say yes", "input": "", "output": "yes"}'
    (mine / "alpaca.json").write_text(f"[{', '.join([pair] * 40)}]")
    rows = '{"goal": "eat", "sol1": "a pan", "sol2": "a pot", "label": 0}\n'
    (mine / "piqa.validation.jsonl").write_text(rows * 4)
    saved_encoder(mine / "bert", "BertModel")
    sums = '{"question": "one cat and two dogs in %s", "answer": "three #### 3"}\n'
    for split in ("test", "train"):
        (mine / f"gsm8k.{split}.jsonl").write_text(sums % split * 8)
    for name in ("classifier", "tuned"):
        saved_encoder(mine / name)
    saved_encoder(mine / "reader", "BertForQuestionAnswering")
    toy(mine / "train.tsv", 64, seed=0)
    toy(mine / "dev.tsv", 16, seed=1)
    saved_pair(mine / "t5", "t5")
    summaries(mine / "pairs.jsonl", 40, seed=0)
    row = {"question": "who ran ?", "context": "a dog ran", "answers": [{"text": "dog", "answer_start": 2}]}
    (mine / "squad.json").write_text(f"{json.dumps(row)}\n" * 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_overrides(tiny_checkpoint, text_file):
    """Overrides that make any run tiny, to go beside `others`."""

    def overrides(*others):
        base = [
            f"model.path={tiny_checkpoint}",
            "calibration=text",
            f"calibration.text.paths={text_file}",
            "calibration.samples=6",
            "calibration.seqlen=16",
        ]
        if "evaluation=[]" not in others:
            base += [
                "evaluation=perplexity_text",
                f"evaluation.perplexity_text.text.paths={text_file}",
                "evaluation.perplexity_text.window=32",
            ]
        return base

    return overrides


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    from cfsp.checkpoints.load import REFERENCE

    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture
def tiny(tiny_checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint)


@pytest.fixture
def trained_with(text_file):
    """A recovery that is small enough to run in a moment."""
    import training

    return partial(training.trained_with, text_file)


@pytest.fixture
def cli(tiny_overrides, tmp_path):
    """Run overrides on a tiny model; the path of the record."""
    from hydra import compose, initialize_config_dir

    from cfsp.records.record import record_path
    from cfsp.running.build import CONF
    from cfsp.running.run import run

    def call(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*tiny_overrides(*overrides), f"results={tmp_path}/results", *overrides])
        return record_path(cfg.results, run(cfg).id)

    return call


def typed(main, capsys):
    """Run a command whose arguments are in sys.argv. Returns exit code, stdout and stderr."""
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


@pytest.fixture
def cfsp(monkeypatch, capsys, tmp_path, tiny_overrides):
    """Run the command in this process with a tiny model. Returns exit code, stdout, lines of stderr."""
    from cfsp.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*arguments):
        flags = [argument for argument in arguments if argument == "-m"]  # argparse wants it first
        rest = [argument for argument in arguments if argument != "-m"]
        monkeypatch.setattr(sys, "argv", ["cfsp", *flags, *tiny_overrides(*arguments), *rest])
        code, out, err = typed(main, capsys)
        return code, out, err.splitlines()

    return call


@pytest.fixture
def task_rows(tmp_path):
    return toy(tmp_path / "train.tsv", 256, seed=0), toy(tmp_path / "dev.tsv", 32, seed=1)


@pytest.fixture
def classify(task_rows):
    """A task of two labels, by a file of each split."""
    from cfsp.data.labelled_rows import LabelledRows
    from cfsp.data.tasks.sequence_classification import SequenceClassification

    train, dev = (LabelledRows(paths=str(path)) for path in task_rows)
    return SequenceClassification(
        name="toy",
        train=train,
        test=dev,
        text="sentence",
        text_pair=None,
        label="label",
        labels=["no", "yes"],
        metrics=["accuracy"],
        window=16,
    )


@pytest.fixture
def task_run(tmp_path, monkeypatch, capsys, task_rows):
    """Type a command with a task; exit code, the record if there is one, stderr."""
    from cfsp.cli.main import main
    from cfsp.records.record import Record

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        base = ["task=sst2", f"task.train.paths={task_rows[0]}", f"task.test.paths={task_rows[1]}"]
        base += ["calibration.samples=12", "calibration.batch_size=4", "task.window=16"]
        monkeypatch.setattr(sys, "argv", ["cfsp", *base, *arguments])
        code, out, err = typed(main, capsys)
        lines = [line for line in out.splitlines() if line.endswith(".json")]
        return code, Record.load(lines[-1]) if lines else None, err

    return call
