"""Adapters inside a model: plans cut them with the weights, as if they had been merged before."""

import copy

import peft
import pytest
import torch
from families import FAMILIES, batches, kinds_of, make, most_distinct
from torch import nn

import cfsp
from cfsp.model.adapters import adapter_members
from cfsp.model.parameter_count import count_parameters
from cfsp.model.weights import added_weight, path_inside, path_outside, why_no_linear

METHODS = {
    "magnitude": {"criterion": "magnitude", "allocator": "uniform"},
    "filled": {"criterion": "flap", "allocator": "global_rank", "compensation": "mean"},
    "refitted": {"criterion": "obs", "allocator": "uniform", "compensation": "least_squares"},
    "taylor": {"criterion": "taylor", "allocator": "uniform"},
    "emptied": {"criterion": "magnitude", "allocator": "global_rank", "allow_empty": True, "sparsity": 0.8},
}


def linear_names(model) -> list[str]:
    """The linear layers of the sites, as peft names them."""
    sites = cfsp.find_sites(model, kinds_of(model))
    return sorted({member.module for site in sites for member in site.members})


def adapted(family, **options):
    """A model in float64 with adapters that are not zero on all linear layers of its sites."""
    model = make(family).double()
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=linear_names(model), fan_in_fan_out=family == "gpt2", **options
    )
    tuned = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return tuned


@pytest.mark.quick_cases(10)
@pytest.mark.parametrize("family", most_distinct(FAMILIES))
@pytest.mark.parametrize("method", METHODS)
def test_a_plan_does_the_same_with_adapters_in_place_and_merged(family, method):
    if method == "taylor" and family in ("bert", "roberta"):
        pytest.skip("it needs labels")
    tuned = adapted(family)
    merged = copy.deepcopy(tuned).merge_and_unload()
    inside = tuned.get_base_model()
    data, options = batches(), {"sparsity": 0.4, **METHODS[method]}
    kinds = kinds_of(merged)
    plans = [cfsp.plan(model, data, kinds=kinds, **options) for model in (inside, merged)]
    assert [edit.stays for edit in plans[0].edits] == [edit.stays for edit in plans[1].edits]
    for mine, theirs in zip(*(plan.edits for plan in plans), strict=True):
        assert mine.keep == theirs.keep
    cfsp.apply(plans[0], inside)
    cfsp.apply(plans[1], merged)
    with torch.no_grad():
        found, expected = tuned(**data[0]).logits, merged(**data[0]).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        again = tuned.merge_and_unload()(**data[0]).logits  # the wrappers know their new sizes
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", most_distinct(FAMILIES))
def test_the_cut_adapters_have_the_sizes_of_their_layers(family):
    tuned = adapted(family)
    inside = tuned.get_base_model()
    cfsp.apply(
        cfsp.plan(inside, batches(), kinds=kinds_of(inside), sparsity=0.5, criterion="magnitude"), inside
    )
    wrappers = [one for one in inside.modules() if hasattr(one, "lora_A")]
    assert wrappers
    for one in wrappers:
        outputs, inputs = one.get_base_layer().weight.shape[:: -1 if family == "gpt2" else 1]
        assert one.lora_A["default"].weight.shape == (3, inputs)
        assert one.lora_B["default"].weight.shape == (outputs, 3)
        assert (one.in_features, one.out_features) == (inputs, outputs)


def test_a_cut_model_with_adapters_trains_on(tokens):
    tuned = adapted("llama")
    inside = tuned.get_base_model()
    plan = cfsp.plan(inside, batches(), kinds=["mlp", "attention"], sparsity=0.5, criterion="magnitude")
    cfsp.apply(plan, inside)
    tuned(**tokens, labels=tokens["input_ids"]).loss.backward()
    grads = {name: one.grad for name, one in tuned.named_parameters()}
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if "lora_" in name)
    assert all(grad is None for name, grad in grads.items() if "lora_" not in name)


def test_grouped_heads_and_their_adapters_go_together():
    """In LLaMA's layout a key/value group of two query heads has 12 rows of q_proj and 6 of k_proj."""
    inside = adapted("llama").get_base_model()
    site = cfsp.find_sites(inside, ["attention"])[0]
    spans = {"".join(member.module.split(".")[-3:-1]): member.span for member in site.adapters}
    assert spans == {"q_projlora_B": 12, "k_projlora_B": 6, "v_projlora_B": 6, "o_projlora_A": 12}


def test_sizes_do_not_count_adapters():
    tuned = adapted("llama")
    inside = tuned.get_base_model()
    sizes = count_parameters(inside, cfsp.find_sites(inside, ["mlp", "attention"]))
    merged = tuned.merge_and_unload()
    assert sizes == count_parameters(merged, cfsp.find_sites(merged, ["mlp", "attention"]))


def test_the_linear_layer_inside_is_found():
    tuned = adapted("llama")
    inside, path = tuned.get_base_model(), "model.layers.0.mlp.up_proj"
    assert path_inside(inside, path) == f"{path}.base_layer"
    assert path_outside(f"{path}.base_layer") == path
    assert path_inside(make("llama"), path) == path
    wrapper = inside.get_submodule(path)
    product = wrapper.lora_B["default"].weight @ wrapper.lora_A["default"].weight
    torch.testing.assert_close(added_weight(inside, f"{path}.base_layer"), 2 * product)
    tuned.merge_adapter()
    assert added_weight(inside, f"{path}.base_layer") is None  # it is in the weight
    assert adapter_members(make("llama"), cfsp.find_sites(make("llama"))[0].members) == ()


def test_a_weight_that_is_not_there_is_named():
    linear = nn.Linear(3, 3)
    assert why_no_linear(linear) is None
    assert "offloaded" in why_no_linear(linear.to("meta"))
    assert "parametrised" in why_no_linear(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)))
    model = make("llama")
    model.model.layers[1].mlp.down_proj.to("meta")
    with pytest.raises(ValueError, match=r"1\.mlp\.down_proj cannot be cut: its weight is offloaded"):
        cfsp.find_sites(model)


def test_other_adapters_are_refused():
    for config in (
        peft.LoraConfig(target_modules=["up_proj"], use_dora=True),
        peft.IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"]),
    ):
        tuned = peft.get_peft_model(make("llama"), config)
        with pytest.raises(ValueError, match=r"up_proj.base_layer cannot be cut: it has .*merge_and_unload"):
            cfsp.find_sites(tuned.get_base_model())
