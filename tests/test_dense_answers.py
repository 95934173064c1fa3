"""Dense answers: how far a cut model is from the dense one, by a part of what they answer."""

import numpy as np
import pytest
import torch
from families import DECODERS, batches, make
from torch.nn import functional as F

import cfsp
from cfsp.allocators import compared_answers
from cfsp.allocators.compared_answers import ComparedAnswers, kept_bytes
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.data.calibration import RandomWindows
from cfsp.data.texts import Stdlib
from cfsp.passes.forward import counted_tokens
from cfsp.passes.hidden_states import Store
from cfsp.schedules import dense_answers as module
from cfsp.schedules.dense_answers import answers_at, dense_answers, drawn_positions, of_tokens

STORE = Store("memory")


def log_softmax(model, batch):
    with torch.no_grad():
        return model(**batch).logits.log_softmax(-1)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("family", [*DECODERS, "bert"])
@torch.no_grad()
def test_the_head_reads_the_positions_that_are_compared_and_no_others(family):
    """What a family does to logits beside the head (a scale, a cap, a transform before) is done too."""
    model, batch = make(family), batches(padded=True)[0]
    shown = drawn_positions(counted_tokens(batch), 3, torch.Generator().manual_seed(1))
    read = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda head, inputs, output: read.append(inputs[0].shape[:-1])
    )
    found = answers_at(model, batch, shown)
    handle.remove()
    assert read == [(1, int(shown.sum()))]
    torch.testing.assert_close(found, model(**batch).logits[shown], rtol=1e-4, atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_all_tokens_but_the_likeliest_are_one_class():
    dense, other = torch.randn(2, 5, 61, generator=torch.Generator().manual_seed(0)) * 3
    tokens = dense.topk(4).indices.int()
    p, q = of_tokens(dense, tokens), of_tokens(other, tokens)
    assert p.shape == (5, 5)
    torch.testing.assert_close(p.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(p[:, :4], dense.log_softmax(1).gather(1, tokens.long()))
    rest = 1 - dense.softmax(1).gather(1, tokens.long()).sum(1)
    torch.testing.assert_close(p[:, 4].exp(), rest)
    coarse = F.kl_div(q, p, log_target=True, reduction="batchmean")
    whole = F.kl_div(other.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
    assert 0 < coarse < whole  # merging classes never adds to a divergence


@torch.no_grad()
def test_the_divergence_is_that_at_the_drawn_positions():
    model, other, data = make("llama"), make("llama", seed=1), batches(2, size=3)
    answers = dense_answers(model, data, ComparedAnswers(0, 4), STORE)
    for batch, one in zip(data, answers, strict=True):
        assert one.shown.sum(1).tolist() == [4, 4, 4]
        p, q = log_softmax(model, batch)[one.shown], log_softmax(other, batch)[one.shown]
        expected = float((p.exp() * (p - q)).sum())
        assert one.divergence(other, batch) == pytest.approx(expected, rel=1e-4)
        assert one.divergence(model, batch) == pytest.approx(0, abs=1e-5)


def test_positions_do_not_depend_on_how_windows_are_batched():
    data = batches(2, size=3, padded=True)
    chance, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    together = torch.cat([drawn_positions(counted_tokens(batch), 5, chance) for batch in data])
    rows = [counted_tokens(batch)[row : row + 1] for batch in data for row in range(3)]
    assert torch.equal(torch.cat([drawn_positions(row, 5, again) for row in rows]), together)
    counted = torch.cat([counted_tokens(batch) for batch in data])
    assert not (together & ~counted).any()
    assert together.sum(1).tolist() == counted.sum(1).clamp(max=5).tolist()


@pytest.mark.parametrize(("top", "positions"), [(0, 0), (8, 0), (0, 5), (8, 5), (1000, 5)])
@torch.no_grad()
def test_what_is_kept_takes_as_many_bytes_as_counted(top, positions):
    data = batches(2, size=3)
    answers = dense_answers(make("llama"), data, ComparedAnswers(top, positions), STORE)
    count = 6 * (positions or data[0]["input_ids"].shape[1])
    assert sum(one.nbytes for one in answers) == kept_bytes(count, 61, top)


@torch.no_grad()
def test_by_default_all_is_compared_if_it_fits(monkeypatch):
    model, data = make("llama"), batches(2, size=3)
    (one, _) = dense_answers(model, data, ComparedAnswers(), STORE)
    assert one.tokens is None
    assert one.shown.all()
    monkeypatch.setattr(compared_answers, "WHOLE", kept_bytes(2 * data[0]["input_ids"].numel(), 61) - 1)
    monkeypatch.setattr(compared_answers, "TOP", 7)
    monkeypatch.setattr(compared_answers, "POSITIONS", 4)
    (one, _) = dense_answers(model, data, ComparedAnswers(), STORE)
    assert one.values.shape == (12, 8)
    (one, _) = dense_answers(model, data, ComparedAnswers(top=0), STORE)
    assert one.values.shape == (12, 61)


def test_bad_options_are_refused():
    for options in ({"top": -1}, {"positions": -1}):
        with pytest.raises(ValueError, match="expected a whole number of at least 0"):
            ComparedAnswers(**options)


def test_a_joint_search_compares_the_same_part(monkeypatch):
    seen = []
    original = module.dense_answers
    for user in ("probes", "joint"):
        monkeypatch.setattr(
            f"cfsp.schedules.{user}.dense_answers",
            lambda *args: seen.append(original(*args)) or seen[-1],
        )
    allocator = ErrorCurves(shares=[0.5], rounds=1, batches=2, compared=ComparedAnswers(8, 5))
    cfsp.plan(make("llama"), batches(), allocator=allocator, criterion="wanda_sp", sparsity=0.3)
    assert [answers[0].values.shape for answers in seen] == [(10, 9), (10, 9)]


def rank(values):
    return np.argsort(np.argsort(values))


def test_the_part_ranks_sites_as_the_whole_does():
    """The embedded model, 32 of its 4,032 tokens at 32 of 128 positions: a 500th of the memory."""
    model, tokenizer = cfsp.load("reference")
    windows = RandomWindows(text=Stdlib(split="calibration"), samples=16, seqlen=128, batch_size=4, seed=0)
    data = windows.batches(tokenizer, model)
    errors = []
    for compared in (ComparedAnswers(), ComparedAnswers(32, 32)):
        allocator = ErrorCurves(shares=[0.8, 0.5], batches=2, compared=compared)
        parts = {"criterion": "wanda_sp", "compensation": "least_squares", "kinds": ["mlp", "attention"]}
        plan = cfsp.plan(model, data, allocator=allocator, sparsity=0.3, **parts)
        errors.append([point[1] for probes in plan.notes["error_curves"].values() for point in probes[:-1]])
    assert len(errors[0]) == 20
    assert np.corrcoef(*map(rank, errors))[0, 1] > 0.9
    assert sum(errors[1]) == pytest.approx(sum(errors[0]), rel=0.2)
