"""Sites: what the layouts say of every family."""

import pytest
import torch
from families import kinds_of, make
from torch import nn

from cfsp.model.blocks import block_modules, check_positions
from cfsp.model.families import LAYOUTS
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Member
from cfsp.model.views import UnitView, unit_cost


def test_units_and_spans_of_grouped_query_attention():
    model = make("llama")
    mlp, attention = find_sites(model, kinds_of(model))[:2]
    assert (mlp.name, mlp.units, mlp.span, mlp.block) == ("model.layers.0.mlp", 40, 1, 0)
    assert (attention.units, attention.span) == (4, 12)  # 4 groups of 2 query heads of 6 channels
    assert [member.span for member in attention.producers] == [12, 6, 6]
    assert unit_cost(model, mlp) == 3 * 32
    assert unit_cost(model, attention) == (12 + 6 + 6 + 12) * 32


def test_unit_cost_counts_biases_of_producers_but_not_of_consumers():
    model = make("llama_mha_biased")
    mlp, attention = find_sites(model, kinds_of(model))[:2]
    assert unit_cost(model, mlp) == 3 * 32 + 2
    assert unit_cost(model, attention) == 4 * 6 * 32 + 3 * 6


def test_every_site_owns_its_axes_completely(model):
    for site in find_sites(model, kinds_of(model)):
        covered = {}
        for member in site.members:
            covered.setdefault((member.module, member.dim), []).append(member.places(range(site.units)))
        for (name, dim), places in covered.items():
            length = model.get_submodule(name).weight.shape[dim]
            assert torch.cat(places).sort().values.tolist() == list(range(length))


def test_fused_attention_of_gpt2_and_gpt_neox():
    gpt2 = find_sites(make("gpt2"), ["attention"])[0]
    assert [(member.dim, member.span, member.offset) for member in gpt2.producers] == [
        (1, 8, 0),
        (1, 8, 32),
        (1, 8, 64),
    ]
    neox = find_sites(make("gpt_neox"), ["attention"])[0]
    assert [(member.dim, member.span, member.offset) for member in neox.producers] == [(0, 24, 0)]


def test_sites_are_found_on_a_bare_encoder_too():
    model = make("bert")
    assert [site.name for site in find_sites(model.base_model, ["mlp"])] == [
        "encoder.layer.0.mlp",
        "encoder.layer.1.mlp",
    ]
    assert block_modules(model)[0] == "bert.encoder.layer.0"


def test_unit_view_is_unit_major():
    model = make("gpt2")
    view = UnitView(model, find_sites(model, ["attention"])[0])
    assert [tuple(weight.shape) for weight in view.producers()] == [(4, 8, 32)] * 3
    weight = model.transformer.h[0].attn.c_attn.weight  # [inputs, q | k | v]
    assert torch.equal(view.producers()[1][2, 3], weight[:, 32 + 2 * 8 + 3])
    assert torch.equal(view.consumers()[0][2, 3], model.transformer.h[0].attn.c_proj.weight[2 * 8 + 3])


def test_member_places():
    assert Member("m", 0, span=2, offset=10).places([0, 3]).tolist() == [10, 11, 16, 17]


def test_unknown_model_type_names_the_known_ones_and_what_to_do():
    model = make("llama")
    model.config.model_type = "nonesuch"
    with pytest.raises(
        ValueError, match=r"'nonesuch' has no layout; known: bart, bert, bloom, .*LAYOUTS\['nonesuch'\]"
    ):
        find_sites(model)


def test_a_new_family_is_one_entry():
    model = make("llama")
    model.config.model_type = "nonesuch"
    LAYOUTS["nonesuch"] = LAYOUTS["llama"]
    try:
        assert len(find_sites(model)) == 2
    finally:
        del LAYOUTS["nonesuch"]


@pytest.mark.parametrize("kinds", [["experts"], "mlp", 5, [], ["mlp", "mlp"]])
def test_wrong_kinds(kinds):
    with pytest.raises(ValueError, match=r"expected (a list of )?one or more of \['mlp', 'att"):
        find_sites(make("llama"), kinds)


def test_positions():
    check_positions(make("roberta"), 48, "seqlen")
    with pytest.raises(ValueError, match="seqlen=49: the model has 48 positions; expected at most 48"):
        check_positions(make("roberta"), 49, "seqlen")


def test_width_that_is_no_multiple_of_the_heads():
    model = make("llama")
    model.model.layers[0].self_attn.k_proj = nn.Linear(32, 25)
    with pytest.raises(ValueError, match="97 rows are no multiple of the 6 channels of a head"):
        find_sites(model, ["attention"])
