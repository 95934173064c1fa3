"""Local reconstruction from the command line."""

import pytest
from hydra import compose, initialize_config_dir

import cfsp
from cfsp.records.record import Record, record_path
from cfsp.running.build import CONF
from cfsp.running.run import run as run_config
from cfsp.running.summary import summary

TINY = [
    "recovery=reconstruction",
    "recovery/data=text",
    "recovery.data.window=16",
    "recovery.data.held_out=8",
    "recovery.data.limit=24",
    "recovery.steps=6",
    "recovery.evaluate_every=2",
    "recovery.batch_size=4",
    "recovery.warmup=0",
]


@pytest.fixture
def cli(tiny_overrides, text_file, tmp_path):
    def call(*overrides):
        own = [*TINY, f"recovery.data.sources.text.text.paths={text_file}", f"results={tmp_path}/results"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*tiny_overrides(*overrides), *own, *overrides])
        return Record.load(record_path(cfg.results, run_config(cfg).id))

    return call


def test_it_runs_from_the_command_line_and_the_model_loads_again(cli, tmp_path):
    record = cli("sites=[mlp,attention]", "sparsity=0.4", f"save={tmp_path / 'model'}")
    assert record.training["tokens"] == 24 * 16
    assert record.training["held_out"] == 8
    assert record.training["peak_bytes"]["host"] > 0
    assert not any((tmp_path / "results" / "recovery").iterdir())
    summary(record)
    model, _ = cfsp.load(tmp_path / "model")
    assert model.num_parameters() == record.parameters["pruned"]["model"]
    again = cli("recovery.hidden_states=disk", "sites=[mlp,attention]", "sparsity=0.4")
    assert again.metrics["pruned"] == record.metrics["pruned"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recovery.data.held_out=0"], "held_out=0: expected some"),
        (["recovery.target=logits"], "recovery.target='logits': expected one of stream, sublayer"),
        (["recovery.scheduler=cosin"], "cosin"),
        (["recovery.data.limit=2"], "2 examples to train on are less than recovery.batch_size=4"),
        (["recovery.data.limit=0"], "limit=0"),
        (["recovery.steps=0"], "recovery.steps=0"),
        (["recovery.data.window=4096"], "the model has 64 positions"),
    ],
)
def test_bad_input_is_one_line(overrides, message, cli):
    with pytest.raises(ValueError, match=message):
        cli(*overrides)
