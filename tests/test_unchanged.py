"""Schedule unchanged: a saved model is measured as it is, a routed one beside the dense model inside it."""

from unittest.mock import patch

import pytest
import torch
from families import batches, make, words
from routed_models import routed

import cfsp as api
from cfsp.cli.overrides import understood
from cfsp.cli.report import report
from cfsp.data.calibration import Calibration
from cfsp.model.modeling_routed import routed_mlps
from cfsp.plans.routes import take_routes
from cfsp.records.record import Record
from cfsp.schedules.unchanged import Unchanged
from cfsp.tables.frame import frame

QUICK = [
    "evaluation.latency.batch_sizes=[1]",
    "evaluation.latency.prompts=[8]",
    "evaluation.latency.repeats=1",
]
QUICK += ["evaluation.latency.new_tokens=2", "evaluation.latency.warmup=0"]
MADE = ["schedule=routed_once", "sparsity=0", "schedule/maker=oracle", "schedule.maker.expert_size=4"]


def logits(model):
    with torch.no_grad():
        return model(**batches(1)[0]).logits


@pytest.fixture
def only_measured(cfsp, text_file, tmp_path):
    """Type what measures a saved folder, where calibration would fail; exit code, record, stdout, stderr."""
    both = ["evaluation=[perplexity_text,routing_text,latency]", *QUICK]
    both += [f"evaluation.{name}.text.paths={text_file}" for name in ("perplexity_text", "routing_text")]
    both += ["evaluation.routing_text.window=16", "evaluation.routing_text.windows=4"]
    both += ["evaluation.routing_text.batches=[1]", "evaluation.perplexity_text.window=32"]

    def call(*more, evaluation=both):
        before = {*tmp_path.glob("results/records/*.json")}
        with patch.object(Calibration, "batches", side_effect=AssertionError("it calibrates")):
            code, out, err = cfsp("model.path=out", *evaluation, *more)
        (made,) = {*tmp_path.glob("results/records/*.json")} - before or {None}
        return code, made and Record.load(made), out, "\n".join(err)

    return call


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "bert"])
def test_routers_that_are_taken_out_make_the_same_model_again(family):
    model = routed(family)
    expected = logits(model)
    plan = api.PrunePlan(tuple(take_routes(model)))
    assert not routed_mlps(model)
    assert torch.allclose(logits(model), logits(make(family)), rtol=1e-4, atol=1e-5)
    api.apply(plan, model)
    assert torch.equal(logits(model), expected)
    assert take_routes(make(family)) == []


def test_a_saved_routed_model_is_measured_beside_its_dense_one(cfsp, only_measured, tmp_path):
    code, _, err = cfsp(*MADE, "schedule.active=0.25", "save=out", "evaluation=[]")
    assert code == 0, err
    code, record, out, err = only_measured()
    assert code == 0, err
    assert "is routed, so none of its units goes" in err
    dense, found = record.metrics["dense"], record.metrics["pruned"]
    (share,) = [name for name in found if name.startswith("active_share/")]
    assert (dense[share].value, found[share].value) == (1, pytest.approx(0.25))
    assert dense["perplexity/files:text.txt"].value != found["perplexity/files:text.txt"].value
    assert {"prefill_ms/b1xp8", "decode_speedup/b1xp8"} <= found.keys()
    assert (record.wanted.text, record.made, len(record.routes)) == ("25% active", "routed", 2)
    assert {*frame([record])["criterion"]} == {"unchanged"}
    assert record.seconds["plan"] < 5
    assert "unchanged; dense is the model without its routers" in out
    code, _, _, err = only_measured("export=[padded]", "save=again")
    assert code == 1
    assert "export: these MLPs are routed" in err


def test_a_pruned_model_that_is_only_measured_is_not_calibrated(cfsp, only_measured, text_file, tmp_path):
    code, _, err = cfsp("allocator=uniform", "sparsity=0.5", "save=out", "evaluation=[]")
    assert code == 0, err
    measure = ["evaluation=perplexity_text", f"evaluation.perplexity_text.text.paths={text_file}"]
    code, record, out, err = only_measured("sparsity=0", evaluation=measure)
    assert code == 0, err
    assert "out is measured as it is (schedule=unchanged)" in err
    assert (record.widths, record.routed, record.sparsity["model"]) == ({}, False, 0)
    assert {*frame([record])["criterion"]} == {"unchanged"}
    assert "out: unchanged" in out
    assert "pruned" not in out
    report([tmp_path / "results" / "records"], tmp_path / "page.html", None, "Study")
    measure[0] = "evaluation=[perplexity_text,latency]"
    code, record, _, err = only_measured("sparsity=0", evaluation=measure)
    assert code == 1
    assert record is None
    assert "evaluation=latency: with schedule=unchanged there is no other model" in err


@pytest.mark.parametrize(
    ("asked", "added"),
    [
        (["sparsity=0"], ["schedule=unchanged"]),
        (["sparsity=0", "sites=[attention]"], ["schedule=unchanged"]),
        (["sparsity=0.2"], []),
        (["sparsity=0", "criterion=flap"], []),
        (["sparsity=0", "recovery=lora"], []),
        (["seed=1"], []),
    ],
)
def test_a_saved_model_is_left_as_it_is_if_nothing_else_is_asked(asked, added, tmp_path):
    model = make("llama")
    plan = api.plan(model, [], criterion="magnitude", allocator="uniform", sparsity=0.5)
    api.save(tmp_path / "out", model, words(), plan)
    path = f"model.path={tmp_path / 'out'}"
    assert understood([path, *asked]) == [path, *asked, *added]
    dense = f"model.path={tmp_path / 'none'}"
    assert understood([dense, *asked]) == [dense, *asked]


def test_what_would_decide_is_refused():
    message = r"sparsity=0\.3: schedule=unchanged removes nothing; expected sparsity=0"
    with pytest.raises(ValueError, match=message):
        Unchanged(sparsity=0.3)
    for parts in ({"criterion": "flap"}, {"compensation": "mean"}, {"allocator": "cfsp"}):
        names = {"criterion": "learned", "allocator": "uniform"} | parts
        with pytest.raises(
            ValueError, match="expected criterion=learned, allocator=uniform and compensation"
        ):
            api.plan(make("llama"), [], schedule=Unchanged(sparsity=0.0), **names)
