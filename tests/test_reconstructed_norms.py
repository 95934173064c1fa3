"""Norms that learn in reconstruction: with the sub-layer that they belong to, and with no other."""

import pytest
import torch
from families import make
from reconstructing import cut, halves, reconstruction, tune, weights

from cfsp.model.blocks import block_modules, places_of

NORMS = {
    "llama": {"attention": ["input_layernorm"], "mlp": ["post_attention_layernorm"]},
    "qwen3": {
        "attention": ["input_layernorm", "self_attn.q_norm", "self_attn.k_norm"],
        "mlp": ["post_attention_layernorm"],
    },
    "gemma2": {
        "attention": ["input_layernorm", "post_attention_layernorm"],
        "mlp": ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
    },
    "olmo2": {"mlp": ["post_feedforward_layernorm"]},  # its attention is no site
    "phi": {},  # attention and MLP read one norm
    "gpt2": {"attention": ["ln_1"], "mlp": ["ln_2"]},
    "opt": {"attention": ["self_attn_layer_norm"], "mlp": ["final_layer_norm"]},
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_learn_with_their_sublayer(name, tmp_path):
    dense = make(name)
    pruned, change = cut(dense, halves(dense))
    before = weights(pruned)
    training = tune(reconstruction(norms=True), dense, pruned, change, tmp_path)
    assert all(one["after"] <= one["before"] for one in training["sublayers"])
    changed = {key for key, value in weights(pruned).items() if not torch.equal(value, before[key])}
    theirs = {path for paths in NORMS[name].values() for path in paths}
    for path in block_modules(pruned):
        own = {key for key in changed if key.startswith(f"{path}.")}
        found = {key.removeprefix(f"{path}.").rpartition(".")[0] for key in own if before[key].dim() == 1}
        places = places_of(pruned, path).values()
        layers = {layer for place in places for layer in (*place.producers, place.consumer)}
        assert found - layers == theirs
    assert all(key.startswith(tuple(block_modules(pruned))) for key in changed)
    plain, change = cut(dense, halves(dense))
    fewer = tune(reconstruction(), dense, plain, change, tmp_path / "plain")
    mine = {f"{block}.{path}" for block in block_modules(pruned) for path in theirs}
    of_norms = [before[key].numel() for key in before if key.rpartition(".")[0] in mine]
    assert training["trainable"] == fewer["trainable"] + sum(of_norms)


def test_a_norm_learns_in_the_lesson_of_its_own_sublayer(tmp_path):
    """While attention alone is tuned, the MLP's norm stays as it is."""
    dense = make("llama")
    pruned, change = cut(dense, {"attention": (0,)})
    before = weights(pruned)
    tune(reconstruction(norms=True), dense, pruned, change, tmp_path)
    changed = {key for key, value in weights(pruned).items() if not torch.equal(value, before[key])}
    assert any("input_layernorm" in key for key in changed)
    assert not any("post_attention_layernorm" in key or ".mlp." in key for key in changed)
