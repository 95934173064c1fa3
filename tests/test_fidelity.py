"""Fidelity: the divergence of two models' predictions, as defined."""

import copy
import math

import pytest
import torch

from cfsp.checkpoints.load import load
from cfsp.data.texts import Files
from cfsp.data.tokens import encode
from cfsp.evaluation.fidelity import Fidelity


@pytest.fixture
def text(text_file):
    return Files(str(text_file))


@pytest.fixture
def pair(tiny_checkpoint):
    dense, tokenizer = load(tiny_checkpoint)
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[:, :30] = 0
    return dense, other, tokenizer


KL, SAME = "kl/files:text.txt", "agreement/files:text.txt"


@torch.no_grad()
def test_equals_the_definition(pair, text):
    dense, other, tokenizer = pair
    ids = torch.tensor(encode(tokenizer, text.joined()))
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    own, found = Fidelity(text, window=32, batch_size=3).run_pair(dense, other, tokenizer)
    kls, same = [], []
    for row in windows:
        p, q = (model(input_ids=row[None]).logits[0, :-1].double().softmax(-1) for model in (dense, other))
        kls.append((p * (p / q).log()).sum(-1).mean().item())
        same.append((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found[KL].value == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert found[SAME].value == pytest.approx(sum(same) / len(same))
    assert found[KL].stderr == pytest.approx(torch.tensor(kls).std().item() / math.sqrt(len(kls)), rel=1e-3)
    assert found[KL].n == len(windows) * 31
    assert found[KL].outcomes.values == pytest.approx(kls, rel=1e-3, abs=1e-6)
    assert 0 < found[SAME].value < 1
    assert (own[KL].value, own[SAME].value) == (0, 1)


def test_a_model_is_equal_to_itself(pair, text):
    dense, _, tokenizer = pair
    found = Fidelity(text, window=32, batch_size=2, windows=3).run(dense, tokenizer)
    assert found[KL].value == pytest.approx(0, abs=1e-6)
    assert found[SAME].value == 1
    assert found[KL].protocol["windows"] == 3
    assert found[KL].protocol["measure"] == "fidelity"


def test_what_cannot_be_compared(pair, text):
    dense, other, tokenizer = pair
    with pytest.raises(ValueError, match="fidelity window=1: expected a whole number of at least 2"):
        Fidelity(text, window=1, batch_size=1)
    with pytest.raises(ValueError, match="windows=0: expected a whole number of at least 1"):
        Fidelity(text, window=8, batch_size=1, windows=0)
    other.resize_token_embeddings(dense.config.vocab_size + 3)
    with pytest.raises(ValueError, match="vocabularies of .* expected the same"):
        Fidelity(text, window=32, batch_size=2).run_pair(dense, other, tokenizer)
    with torch.no_grad():
        dense.lm_head.weight[0] = float("nan")
    with pytest.raises(ValueError, match="an output is NaN or infinite"):
        Fidelity(text, window=32, batch_size=2).run(dense, tokenizer)
