"""Log-likelihoods of continuations: equal to a plain pass, whatever is shared, padded and batched."""

import pytest
import torch
from families import DECODERS, make, most_distinct

from cfsp.evaluation.likelihoods import Continuation, grouped, score


def asked():
    """Questions and choices of several lengths; two are one sequence, one stands alone."""
    dice = torch.Generator().manual_seed(0)

    def tokens(count):
        return tuple(torch.randint(2, 61, (count,), generator=dice).tolist())

    contexts = [tokens(count) for count in (1, 5, 14, 14, 22)]
    found = [Continuation(context, tokens(count)) for context in contexts for count in (4, 1, 7)]
    begun = tokens(9)
    same = [Continuation((*begun, 7, 8), (choice,)) for choice in (5, 6)]
    return [*found, *same, Continuation(begun, (4,))]


@torch.no_grad()
def plain(model, one):
    logits = model(input_ids=torch.tensor([one.context + one.tokens])).logits[0, :-1]
    logits = logits[len(one.context) - 1 :].log_softmax(-1)
    wanted = torch.tensor(one.tokens)
    return logits.gather(1, wanted[:, None]).sum().item(), bool((logits.argmax(-1) == wanted).all())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("family", most_distinct(DECODERS))
def test_scores_are_those_of_plain_passes(family):
    model = make(family)
    expected = [plain(model, one) for one in asked()]
    for batch_size in (1, 3, 64):
        found = score(model, asked(), batch_size)
        assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], rel=1e-4, abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_greedy_decoding_would_write_is_told():
    model = make("llama")
    with torch.no_grad():
        likely = model(input_ids=torch.tensor([[5, 9]])).logits[0, -1].argmax().item()
    found = score(model, [Continuation((5, 9), (likely,)), Continuation((5, 9), ((likely + 1) % 61,))], 2)
    assert [greedy for _, greedy in found] == [True, False]


def test_choices_of_a_question_are_read_with_one_beginning():
    context = (7, *range(20, 40))
    other = (7, *range(40, 60))
    questions = [Continuation(one, (choice, 3, 4)) for one in (context, other) for choice in (5, 6, 8, 9)]
    stems = grouped(questions, most=8)
    assert sorted((stem.shared, sorted(stem.members)) for stem in stems) == [
        (20, [0, 1, 2, 3]),
        (20, [4, 5, 6, 7]),
    ]
    read = sum(stem.shared + sum(23 - stem.shared for _ in stem.members) for stem in stems)
    assert read == 2 * (20 + 4 * 3)
    assert all(len(stem.members) <= 3 for stem in grouped(questions, most=3))


def test_examples_before_all_questions_are_read_once():
    shots = tuple(range(2, 42))
    questions = [Continuation((*shots, first, 50), (choice,)) for first in range(42, 46) for choice in (5, 6)]
    (stem,) = grouped(questions, most=64)
    assert stem.shared == 40


def test_a_context_beyond_the_window_loses_its_beginning():
    one = Continuation((1, 2, 3, 4), (5, 6))
    assert one.cut(5) is one
    assert one.cut(3) == Continuation((3, 4), (5, 6))
    with pytest.raises(ValueError, match="an answer of 2 tokens; expected at most 1, the window"):
        one.cut(1)


def test_progress_counts_every_continuation():
    done = []
    score(make("llama"), asked(), 4, done.append)
    assert sum(done) == len(asked())
