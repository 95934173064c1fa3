"""DeciLM: stock blocks of the sizes in the config compute what the pruned model computes."""

import pytest
import torch
import transformers as t
from families import make, words
from plans import logits, ones_for
from pruned_models import cut
from safetensors.torch import load_file

import cfsp
from cfsp.exports.decilm import DeciLM, groups_within, shapes_of_equal_heads
from cfsp.model.shapes import BlockShape


def as_stock(folder):
    """A Llama of transformers whose blocks have the sizes and biases that vLLM would give them."""
    config = t.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    plain = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "auto_map")}
    plain = {key: value for key, value in plain.items() if key != "block_configs"}
    plain |= {"mlp_bias": config.mlp_bias, "attention_bias": False}
    blocks = []
    for block in config.block_configs:
        groups = config.num_attention_heads // block.attention.n_heads_in_group
        one = plain | {"num_key_value_heads": groups, "intermediate_size": block.ffn.intermediate_size}
        made = t.LlamaForCausalLM(t.LlamaConfig(**one))
        blocks.append(made.model.layers[len(blocks)])
        if config.attention_bias:
            blocks[-1].self_attn.o_proj.bias = torch.nn.Parameter(torch.zeros(config.hidden_size))
    whole = t.LlamaForCausalLM(t.LlamaConfig(**plain))
    whole.model.layers = torch.nn.ModuleList(blocks)
    whole.load_state_dict(load_file(folder / "model.safetensors"))
    return whole.eval()


@pytest.mark.parametrize("fill", [False, True])
def test_the_checkpoint_computes_the_same(fill, tmp_path, tokens):
    model, plan = cut("llama", ["mlp", "attention"], fill=fill)
    cfsp.save(tmp_path / "m", model, words(), plan)
    DeciLM().export(tmp_path / "m", tmp_path / "out")
    again = as_stock(tmp_path / "out")
    torch.testing.assert_close(logits(again, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)


def test_layers_that_are_gone_are_of_zeros(tmp_path, tokens):
    model = make("llama")
    sites = cfsp.find_sites(model, ["mlp", "attention"])[:2]
    fills = ones_for(sites)
    plan = cfsp.PrunePlan(tuple(cfsp.Cut(site.name, site.units, (), fills[site.name]) for site in sites))
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "m", model, words(), plan)
    DeciLM().export(tmp_path / "m", tmp_path / "out")
    again = as_stock(tmp_path / "out")
    torch.testing.assert_close(logits(again, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)


def test_all_blocks_get_the_fewest_heads_that_hold_their_groups():
    blocks = [BlockShape(5, 3, 3), BlockShape(6, 4, 2), BlockShape(0, 0, 0)]
    assert groups_within(blocks[0], 4) == 4
    four = [BlockShape(5, 4, 4), BlockShape(6, 4, 2), BlockShape(32, 4, 1)]
    assert shapes_of_equal_heads(blocks, 32) == four
    six = [BlockShape(5, 2, 1), BlockShape(5, 6, 3)]
    assert [one.heads for one in shapes_of_equal_heads(six, 36)] == [6, 6]
    assert [one.heads for one in shapes_of_equal_heads(six, 32)] == [8, 8]  # 32 is no multiple of 6


@pytest.mark.parametrize(
    ("family", "error"),
    [
        ("qwen2", "a qwen2 with hidden_act=silu is no DeciLM; .*padded"),
        ("mistral", "sliding_window=8 tokens"),
    ],
)
def test_other_models_are_refused(family, error, tmp_path):
    cfsp.save(tmp_path / "m", make(family), words(), cfsp.PrunePlan(()))
    with pytest.raises(ValueError, match=error):
        DeciLM().export(tmp_path / "m", tmp_path / "out")
