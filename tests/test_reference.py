"""The embedded model is what the README says, and pruning it is a real question."""

import pytest
import torch

import cfsp
from cfsp.checkpoints.load import REFERENCE, load
from cfsp.data.texts import Stdlib, Text
from cfsp.evaluation.perplexity import Perplexity
from cfsp.storage.fingerprints import fingerprint


class Excerpt(Text):
    """The first part of the held-out documentation, to keep the test quick."""

    label = "excerpt"

    def documents(self):
        return [Stdlib("test").joined()[:60_000]]


@pytest.fixture(scope="module")
def reference():
    return load("reference")


def test_size(reference):
    model, tokenizer = reference
    assert model.num_parameters() <= 4_000_000
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) <= 8 * 2**20
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.dtype == torch.float32
    text = "def f(x):\n\treturn x  # naïve ☃\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_knows_held_out_documentation(reference):
    found = Perplexity(Excerpt(), window=512, batch_size=8).run(*reference)
    assert found["bits_per_byte/excerpt"].value < 2.3


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_criteria_beat_chance(sparsity):
    from cfsp.data.calibration import RandomWindows

    evaluator = Perplexity(Excerpt(), window=512, batch_size=8)
    windows = RandomWindows(Stdlib("calibration"), samples=32, seqlen=256, batch_size=8, seed=0)
    values = {}
    for criterion in ("chance", "wanda_sp", "flap", "cfsp"):
        model, tokenizer = load("reference")
        batches = windows.batches(tokenizer)
        cfsp.apply(
            cfsp.plan(model, batches, criterion=criterion, allocator="uniform", sparsity=sparsity), model
        )
        values[criterion] = evaluator.run(model, tokenizer)["perplexity/excerpt"].value
    assert all(values[name] < 0.9 * values["chance"] for name in ("wanda_sp", "flap", "cfsp")), values


def test_fingerprint_names_the_weights(reference):
    model, _ = reference
    same, _ = load("reference")
    assert fingerprint(same) == fingerprint(model)
    with torch.no_grad():
        same.model.layers[0].mlp.up_proj.weight += 1e-3
    assert fingerprint(same) != fingerprint(model)
