"""Gradients: LLM-Pruner's importance against its closed form, and what it costs."""

import pytest
import torch
from families import DECODERS, all_kinds, batches, make

from cfsp.criteria.taylor import Taylor
from cfsp.model.find_sites import find_sites
from cfsp.model.views import UnitView, learned_weights
from cfsp.statistics.base import STATISTICS
from cfsp.statistics.collect import collect
from cfsp.statistics.gradients import GradientStatistic, backpropagate

TAYLOR = [name for name, kind in STATISTICS.items() if issubclass(kind, GradientStatistic)]


def naive(model, samples):
    """Mean and mean square of every weight's gradient over samples, one after the other."""
    mean = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    square = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    rows = [(ids, mask) for batch in samples for ids, mask in zip(*batch.values(), strict=True)]
    counts = [int(mask[1:].sum()) for _, mask in rows]
    for (ids, mask), count in zip(rows, counts, strict=True):
        model.zero_grad()
        labels = ids.masked_fill(mask == 0, -100)
        model(input_ids=ids[None], attention_mask=mask[None], labels=labels[None]).loss.backward()
        for name, weight in model.named_parameters():
            mean[name] += weight.grad * count / sum(counts)
            square[name] += weight.grad**2 * count / sum(counts)
    model.zero_grad()
    return mean, square


def test_equal_the_formulas():
    model = make("llama")
    samples = batches(padded=True)
    mean, square = naive(model, samples)
    site = find_sites(model, ["mlp"])[1]
    found = backpropagate(model, [site], samples, TAYLOR)[site.name]
    names = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    weights = dict(model.named_parameters())
    formulas = {
        "vectorize": lambda w, g, h: (g * w).sum(1).abs(),
        "first": lambda w, g, h: (g * w).abs().sum(1),
        "second": lambda w, g, h: (h * w**2).sum(1),
        "mix": lambda w, g, h: (g * w - h * w**2 / 2).abs().sum(1),
    }
    for order, formula in formulas.items():
        rows = []
        for name in names:
            parts = [tensors[name].detach() for tensors in (weights, mean, square)]
            rows.append(formula(*(part.T if "down" in name else part for part in parts)))
        torch.testing.assert_close(found[f"taylor_{order}"], torch.cat(rows), rtol=1e-4, atol=1e-7)


def test_reductions_take_units_of_members():
    members = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    view = type("View", (), {"units": 4, "spans": [1, 1]})()
    stat = {"taylor_first": members.flatten()}
    expected = {
        "sum": members.sum(0),
        "mean": members.mean(0),
        "max": members.amax(0),
        "prod": members.prod(0),
        "first": members[0],
        "last": members[1],
    }
    for reduction, score in expected.items():
        assert torch.equal(Taylor(reduction=reduction).score(view, stat), score.double())


def test_a_group_gets_the_scores_of_its_own_query_heads():
    """The release folds 4 heads onto 2 groups as (0, 2) and (1, 3); a group's heads are (0, 1) and (2, 3)."""
    queries, keys = torch.tensor([0.0, 100, 0, 0]), torch.zeros(2)
    view = type("View", (), {"units": 2, "spans": [2, 1]})()
    stat = {"taylor_first": torch.cat([queries, keys])}
    assert Taylor().score(view, stat).tolist() == [100, 0]
    assert Taylor(grouping="released").score(view, stat).tolist() == [0, 100]


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("family", DECODERS)
def test_the_model_is_as_it_was_and_batches_do_not_matter(family):
    model = make(family)
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    weights = [weight.clone() for weight in model.parameters()]
    sites = find_sites(model, all_kinds(model))
    samples = batches(padded=True)
    singles = [{k: v[row : row + 1] for k, v in batch.items()} for batch in samples for row in range(2)]
    one = backpropagate(model, sites, samples, {"taylor_mix"})
    other = backpropagate(model, sites, singles, {"taylor_mix"}, checkpointing=True)
    for site in sites:
        torch.testing.assert_close(one[site.name], other[site.name], rtol=1e-5, atol=1e-9)
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    assert not frozen.requires_grad
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())


def test_no_more_than_one_gradient_exists_at_a_time_and_none_of_embeddings(monkeypatch):
    model = make("qwen2")  # tied embeddings
    sites = find_sites(model, all_kinds(model))
    learned = {id(row[0]) for site in sites if site.kind != "block" for row in learned_weights(model, site)}
    assert id(model.get_input_embeddings().weight) not in learned
    most = []
    original = torch.Tensor.add_

    def counting(self, *args, **kwargs):
        most.append(sum(weight.grad is not None for weight in model.parameters()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "add_", counting)
    backpropagate(model, sites, batches(), {"taylor_first"})
    assert max(most) == 0  # the one that is taken up has left its weight already


def test_checkpointing_runs_every_block_twice():
    model = make("llama")
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    sites, samples = find_sites(model), batches(count=1, size=1)
    for checkpointing, expected in ((False, 1), (True, 2)):
        calls.clear()
        collect(model, sites, samples, {"taylor_first"}, checkpointing=checkpointing)
        assert len(calls) == expected


def test_activations_and_gradients_together():
    model = make("llama")
    sites = find_sites(model, ["mlp", "attention"])
    stats = collect(model, sites, iter(batches()), {"taylor_first", "input_mean", "block_angular"})
    for site in sites:
        assert set(stats[site.name]) == {"taylor_first", "input_mean", "block_angular"}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no token to predict"),
        ([{"input_ids": torch.ones(2, 1, dtype=torch.long)}], "no token to predict"),
    ],
)
def test_nothing_to_predict(samples, message):
    model = make("llama")
    with pytest.raises(ValueError, match=message):
        backpropagate(model, find_sites(model), samples, {"taylor_first"})


def test_a_loss_that_is_no_number_names_the_sample():
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="calibration sample 0 has a loss of nan"):
        backpropagate(model, find_sites(model), batches(), {"taylor_first"})


def test_removing_the_unit_with_the_least_score_costs_least():
    """First order predicts the change of the loss for a unit that hardly matters."""
    model = make("llama")
    site = find_sites(model)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 7] *= 1e-4
    stats = collect(model, [site], batches(), {"taylor_first"})
    score = Taylor().score(UnitView(model, site), stats[site.name])
    stat = backpropagate(model, [site], batches(), {"taylor_first"})[site.name]["taylor_first"]
    last = Taylor(reduction="last").score(UnitView(model, site), {"taylor_first": stat})
    assert int(last.argmin()) == 7
    assert score.shape == (40,)


def test_padding_on_the_left_changes_nothing():
    model = make("llama")
    ids = batches(count=1)[0]["input_ids"]
    mask = torch.ones_like(ids)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], dim=1)
    hidden = torch.cat([torch.zeros(2, 4, dtype=torch.long), mask], dim=1)
    positions = (hidden.cumsum(1) - 1).clamp(min=0)
    sites, needs = find_sites(model, ["mlp"]), {"taylor_first"}
    plain = backpropagate(model, sites, [{"input_ids": ids, "attention_mask": mask}], needs)
    left = {"input_ids": padded, "attention_mask": hidden, "position_ids": positions}
    shifted = backpropagate(model, sites, [left], needs)
    for site in sites:
        torch.testing.assert_close(plain[site.name], shifted[site.name], rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_half_precision_moments_do_not_stand_still():
    model = make("llama").to(torch.bfloat16)
    sites, needs = find_sites(model, ["mlp"])[:1], {"taylor_second"}
    sample = {"input_ids": batches(count=1, size=1)[0]["input_ids"]}
    few, many = (backpropagate(model, sites, [sample] * count, needs) for count in (4, 600))
    for site in sites:
        torch.testing.assert_close(few[site.name], many[site.name], rtol=1e-2, atol=1e-12)
