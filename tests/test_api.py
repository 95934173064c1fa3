"""The Python API, and every criterion x allocator x family end to end."""

import pytest
import torch
from families import batches, kinds_of, make

import cfsp
from cfsp.criteria.flap import FLAP
from cfsp.plans.choose import best_units


@pytest.mark.parametrize(("base", "share"), [("sites", 0.25), ("blocks", 0.25), ("model", 0.1)])
def test_sparsity_is_of_the_base_that_was_asked(base, share):
    from cfsp.model.parameter_count import count_parameters

    model = make("llama")
    sites = cfsp.find_sites(model, ["mlp"])
    before = count_parameters(model, sites)
    cfsp.apply(cfsp.plan(model, batches(), sparsity=share, sparsity_of=base), model)
    after = count_parameters(model, cfsp.find_sites(model, ["mlp"]))
    removed = before["model"] - after["model"]
    assert removed == before[base] - after[base]
    assert abs(removed - share * before[base]) < 96  # one neuron


def test_plan_leaves_the_model_alone_and_repeats_itself(tmp_path):
    model = make("llama")
    weights = [weight.clone() for weight in model.parameters()]
    for name in ("a", "b"):
        plan = cfsp.plan(
            model, batches(), kinds=kinds_of(model), criterion="flap", compensation="mean", sparsity=0.4
        )
        plan.save(tmp_path / name)
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_saved_plan_cuts_a_fresh_model_the_same_way(tmp_path):
    first, second = make("qwen3"), make("qwen3")
    plan = cfsp.plan(first, batches(), kinds=kinds_of(first), compensation="mean", sparsity=0.4)
    plan.save(tmp_path)
    cfsp.apply(plan, first)
    cfsp.apply(cfsp.PrunePlan.load(tmp_path), second)
    sample = batches(count=1)[0]
    assert torch.equal(first(**sample).logits, second(**sample).logits)


def test_options_go_to_the_component_that_has_them():
    model = make("llama")
    flat = cfsp.plan(model, batches(), temperature=0.0, sparsity=0.5)
    steep = cfsp.plan(model, batches(), temperature=60.0, sparsity=0.5)
    assert {len(cut.keep) for cut in flat.edits} == {20}
    assert {len(cut.keep) for cut in steep.edits} != {20}
    assert cfsp.plan(model, batches(), variant="released", sparsity=0.5).edits[0].keep != flat.edits[0].keep


def test_a_component_may_be_an_object():
    named = cfsp.plan(make("llama"), batches(), criterion="flap", metric="ifv", allocator="uniform")
    given = cfsp.plan(make("llama"), batches(), criterion=FLAP("ifv"), allocator="uniform")
    assert [cut.keep for cut in named.edits] == [cut.keep for cut in given.edits]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "wanda"}, KeyError, "criterion 'wanda': expected one of .*; did you mean 'wanda_sp'"),
        ({"tempo": 1}, TypeError, "option 'tempo': no component has it"),
        (
            {"criterion": "flap", "allocator": "global_rank", "standardise": True},
            TypeError,
            "criterion and allocator have it; pass an object",
        ),
        ({"sparsity": 1.0}, ValueError, r"sparsity=1.0: expected a share to remove, in \[0, 1\)"),
        ({"sparsity": float("nan")}, ValueError, "sparsity=nan"),
        ({"sparsity": "much"}, ValueError, "sparsity='much'"),
        ({"sparsity_of": "heads"}, ValueError, "sparsity_of='heads': expected one of sites, blocks, model"),
        ({"sparsity": 0.6, "sparsity_of": "model"}, ValueError, "expected less than 0.366, or more sites"),
    ],
)
def test_bad_calls(options, error, message):
    with pytest.raises(error, match=message):
        cfsp.plan(make("llama"), batches(), **options)


def test_infinite_weights_are_an_error_of_their_site():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="model.layers.1.mlp: a score is NaN or infinite"):
        cfsp.plan(model, batches(), criterion="magnitude", allocator="uniform")


def test_every_site_gets_its_own_fill():
    model = make("llama")
    sites = cfsp.find_sites(model, kinds_of(model))
    stats = cfsp.collect(model, sites, batches(), {"input_mean"})
    plan = cfsp.plan(
        model, batches(), kinds=kinds_of(model), allocator="uniform", compensation="mean", sparsity=0.5
    )
    for cut in plan.edits:
        torch.testing.assert_close(cut.fill, stats[cut.site]["input_mean"].float())


def test_no_sparsity_adds_no_bias():
    model = make("llama")
    plan = cfsp.plan(
        model, batches(), kinds=kinds_of(model), criterion="flap", compensation="mean", sparsity=0.0
    )
    assert all(cut.fill is None for cut in plan.edits)


def test_a_tied_weight_counts_once():
    from cfsp.model.parameter_count import count_parameters

    tied = make("qwen2")
    assert tied.config.tie_word_embeddings
    assert count_parameters(tied, cfsp.find_sites(tied))["model"] == tied.num_parameters()
    assert tied.num_parameters() == sum(weight.numel() for weight in set(tied.parameters()))


def test_a_model_cut_to_one_neuron_can_still_be_planned():
    model = make("llama")
    site = cfsp.find_sites(model)[0]
    cfsp.apply(cfsp.PrunePlan((cfsp.Cut(site.name, site.units, (3,)),)), model)
    cfsp.plan(model, batches(), criterion="flap", allocator="global_rank", sparsity=0.1)


def test_an_empty_plan_changes_nothing():
    cfsp.apply(cfsp.PrunePlan(()), make("llama"))


def test_best_units_are_exact_with_ties():
    assert best_units(torch.tensor([1.0, 2, 2, 2, 0]), 2) == (1, 2)
    assert best_units(torch.zeros(5), 3) == (0, 1, 2)


def test_public_names():
    assert set(cfsp.__all__) <= set(dir(cfsp))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = cfsp.nonesuch
