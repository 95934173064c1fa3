"""Routes: edits that make MLPs routed, through plan, surgery and disk, into a process without cfsp."""

import subprocess
import sys

import pytest
import torch
from families import make, most_distinct, words
from routed_models import plan_for, routed
from transformers import AutoModel, AutoModelForCausalLM

import cfsp
from cfsp.cli.overrides import understood
from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import routed_mlps, uninstall
from cfsp.plans.plan import PrunePlan, Route
from cfsp.plans.routes import permute_units
from cfsp.storage.fingerprints import fingerprint

IDS = torch.randint(2, 61, (2, 9), generator=torch.Generator().manual_seed(4))


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("family", most_distinct(["llama", "phi3", "gpt2", "opt", "bloom", "bert", "falcon"]))
def test_another_order_of_neurons_computes_the_same(family):
    model = make(family)
    expected, before = logits(model), {n: w.clone() for n, w in model.named_parameters()}
    for site in find_sites(model):
        permute_units(model, site, torch.randperm(site.units, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_routed_model_is_the_dense_one_once_its_routers_are_gone(family):
    model, dense = routed(family), make(family)
    assert not torch.allclose(logits(model), logits(dense), rtol=1e-2)
    uninstall(model)
    assert torch.allclose(logits(model), logits(dense), rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == dense.state_dict().keys()


def test_a_plan_of_routes_survives_the_disk(tmp_path):
    model, plan = make("llama"), plan_for(make("llama"))
    plan.save(tmp_path)
    again = PrunePlan.load(tmp_path)
    cfsp.apply(again, model)
    assert torch.equal(logits(model), logits(routed()))
    assert [edit.stays for edit in again.edits] == [[40, 40]] * 2
    assert plan.decision().edits[0].held() == {}


BARE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor([[5, 6, 7]])
with torch.no_grad():
    said = model.generate(ids, max_new_tokens=5, pad_token_id=0)
    torch.save((model(input_ids=ids).logits, said), sys.argv[2])
assert "cfsp" not in sys.modules
"""


@pytest.mark.slow
def test_a_checkpoint_is_routed_with_its_code_and_dense_without(tmp_path):
    model = routed()
    cfsp.save(tmp_path / "out", model, words(), plan_for(model))
    command = [sys.executable, "-c", BARE, str(tmp_path / "out"), str(tmp_path / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found, said = torch.load(tmp_path / "found.pt")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(found, logits(model, ids), rtol=1e-5, atol=1e-5)
    assert torch.equal(said, model.generate(ids, max_new_tokens=5, pad_token_id=0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loading_gives_the_same_routed_model_and_plain_transformers_the_dense_one(tmp_path, family):
    model = routed(family)
    cfsp.save(tmp_path / "out", model, words(), plan_for(model))
    again, _ = cfsp.load(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not routed_mlps(plain)
    assert torch.allclose(logits(plain), logits(make(family)), rtol=1e-4, atol=1e-5)
    cfsp.save(tmp_path / "again", again, words(), plan_for(again))
    third, _ = cfsp.load(tmp_path / "again")
    assert torch.equal(logits(third), logits(model))
    remote = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert [type(one).__name__ for one in remote.modules()].count("RoutedMLP") == 2


def test_no_unit_of_a_saved_routed_model_goes_unless_it_is_asked(tmp_path, capsys):
    """`cfsp model.path=out/routed evaluation=routing` measures it; the default sparsity could not be had."""
    model, dense = routed(), make("llama")
    cfsp.save(tmp_path / "routed", model, words(), plan_for(model))
    dense.save_pretrained(tmp_path / "dense")
    path = f"model.path={tmp_path / 'routed'}"
    as_it_is = ["schedule=unchanged", "sparsity=0"]
    assert understood([path, "evaluation=routing"]) == [path, "evaluation=routing", *as_it_is]
    told = capsys.readouterr().err
    assert "is routed, so none of its units goes (schedule=unchanged sparsity=0)" in told
    for asked in (
        "sparsity=0.3",
        "sites=[attention]",
        "+experiment=lte",
        "schedule.sparsity=0.1",
        "criterion=obs",
    ):
        assert understood([path, asked]) == [path, asked]
    assert understood([path, "target.parameters=3M"])[-1] == "sparsity=null"
    for other in (f"model.path={tmp_path / 'dense'}", f"model.path={tmp_path / 'none'}", "seed=1"):
        assert understood([other]) == [other]
    assert not capsys.readouterr().err


def test_a_cut_and_routed_model_is_saved_with_its_sizes(tmp_path):
    model = make("llama")
    plan = cfsp.plan(model, [], criterion="magnitude", allocator="uniform", kinds=["attention"], sparsity=0.5)
    cfsp.apply(plan, model)
    cfsp.apply(plan_for(model), model)
    cfsp.save(tmp_path / "out", model, words(), plan)
    again, _ = cfsp.load(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))


def test_another_threshold_is_another_model():
    assert fingerprint(routed(threshold=0.5)) != fingerprint(routed(threshold=0.7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "model.layers.0.attention"}, "only neurons of an MLP can be routed"),
        ({"units": 44}, "made for 44 units .* this model has 40"),
        ({"router": {"size": 7}}, "experts of 7 units; expected a size that divides 40"),
        ({"order": torch.zeros(40, dtype=torch.long)}, "order does not have each of the 40 units once"),
    ],
)
def test_a_route_that_does_not_fit_is_refused(change, message):
    model = make("llama")
    sites = {site.name: site for site in find_sites(model, ["mlp", "attention"])}
    fields = {"site": "model.layers.0.mlp", "units": 40, "router": {"size": 4}} | change
    with pytest.raises(ValueError, match=message):
        Route(**fields).check(sites[fields["site"]])


def test_what_is_routed_is_not_routed_again():
    model = routed()
    with pytest.raises(ValueError, match="model.layers.0.mlp is routed: its units cannot be routed"):
        cfsp.apply(plan_for(model), model)


def test_what_is_routed_is_not_pruned():
    model = routed()
    fixed = {"criterion": "magnitude", "allocator": "uniform", "kinds": ["mlp"]}
    with pytest.raises(ValueError, match="model.layers.0.mlp is routed: its units cannot be removed"):
        cfsp.plan(model, [], sparsity=0.3, **fixed)
    assert cfsp.plan(model, [], sparsity=0.0, **fixed).edits
