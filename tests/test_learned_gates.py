"""Gates with scores, their gradients, and the controller; zeros that stay in weights."""

import math

import pytest
import torch
from families import kinds_of, make

import cfsp
from cfsp.model.parameter_count import density
from cfsp.training.base import Change
from cfsp.training.control import Controller, cubic
from cfsp.training.full import Full
from cfsp.training.learned_gates import HardConcrete, Step, TileGate, UnitGate, lowest


def test_a_unit_gate_masks_the_channels_of_its_units():
    site = cfsp.find_sites(make("llama"), kinds_of(make("llama")))[0]
    consumer = site.consumers[0]
    weight = torch.ones(32, site.units * consumer.span)
    gate = UnitGate(consumer, site.units, Step(), 0.0, weight)
    gate.close(consumer, torch.arange(site.units) == 1)
    masked = gate(weight)
    places = consumer.places([1])
    assert masked[:, places].abs().sum() == 0
    assert masked.sum() == weight.sum() - 32 * len(places)


@pytest.mark.parametrize("tile", [1, 2, 4])
def test_the_gradient_of_a_score_is_that_of_all_its_weights(tile):
    """dL/dS = sum of dL/dW' * W over the tile (arXiv:2005.07683, section 3)."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(4, 8), torch.randn(3, 8)
    gate = TileGate(tile, Step(), 0.5, weight, 1)
    gate.mask[0, 0] = 0  # closed, and yet it has a gradient
    masked = gate(weight)
    masked.retain_grad()
    (inputs @ masked.T).square().sum().backward()
    product = masked.grad * weight
    expected = product.view(4 // tile, tile, 8 // tile, tile).sum((1, 3))
    torch.testing.assert_close(gate.scores.grad, expected)
    assert gate.scores.grad[0, 0] != 0


def test_a_closed_unit_of_tiles_is_zero_and_its_tiles_have_a_gradient():
    site = cfsp.find_sites(make("llama"), kinds_of(make("llama")))[0]
    consumer = site.consumers[0]
    weight = torch.randn(32, site.units * consumer.span)
    gate = TileGate(4, Step(), 0.0, weight, consumer.dim)
    gate.close(consumer, torch.arange(site.units) == 1)
    masked = gate(weight)
    places = consumer.places([1])
    assert masked[:, places].abs().sum() == 0
    assert torch.equal(masked[:, : places[0]], weight[:, : places[0]])
    masked.retain_grad()
    masked.sum().backward()
    torch.testing.assert_close(gate.scores.grad, weight.view(8, 4, -1, 4).sum((1, 3)))


def sorted_lowest(scores, share, least):
    """The same by sorting all scores."""
    order = scores.argsort(stable=True)
    gone = torch.arange(1, len(scores) + 1) <= share * len(scores) + 1e-6
    return torch.zeros(len(scores), dtype=torch.bool).scatter_(0, order, gone) & (scores <= least)


@pytest.mark.parametrize("least", [-math.inf, -0.5, 0.0, 2.0, math.inf])
@pytest.mark.parametrize("kinds", [1, 2, 7, 10_000])
def test_the_lowest_scores_are_those_that_sorting_finds(kinds, least):
    """Of scores with few or many different values: of equal ones the first."""
    generator = torch.Generator().manual_seed(kinds)
    scores = torch.randn(kinds, generator=generator)[torch.randint(kinds, (51,), generator=generator)]
    for share in (0.0, 0.01, 0.1, 0.3, 0.5, 2 / 3, 0.98, 1.0):
        found = lowest(scores, share, least)
        assert torch.equal(found, sorted_lowest(scores, share, least)), share
        assert least < math.inf or int(found.sum()) == int(51 * share)


def test_hard_concrete_gates_open_as_often_as_their_openness_says():
    torch.manual_seed(0)
    rule = HardConcrete()
    for score in (-2.0, 0.0, 1.5):
        scores = torch.full((40_000,), score)
        drawn = rule.value(scores, torch.ones_like(scores), training=True)
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert float((drawn > 0).float().mean()) == pytest.approx(float(rule.openness(scores)[0]), abs=0.01)
    fixed = rule.value(torch.tensor([3.0, 0.1, 9.0]), torch.tensor([0.0, 1.0, 1.0]), training=False)
    assert fixed.tolist() == pytest.approx([0, 1.2 * 0.52498 - 0.1, 1], abs=1e-4)
    closed = rule.value(torch.zeros(9, requires_grad=True), torch.zeros(9), training=True)
    assert closed.tolist() == [0] * 9
    assert closed.requires_grad


def test_the_schedule_is_cubic_between_its_ends():
    assert [cubic(at, 0.1, 0.4) for at in (0, 0.1, 0.6, 1)] == [0, 0, 1, 1]
    assert cubic(0.35, 0.1, 0.4) == pytest.approx(1 - 0.5**3)
    rises = [cubic(at / 100, 0.1, 0.4) for at in range(101)]
    assert rises == sorted(rises)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("strength", [0.3, 3.0])
def test_the_controller_leads_to_the_target(target, strength):
    """A process that lags behind its penalty, as scores do."""
    control, share = Controller(target), 0.0
    for step in range(1, 401):
        goal = 1 - math.exp(-strength * control.factor)
        share += 0.05 * (goal - share)
        control.step(share, 1.0, step / 400)
    assert share == pytest.approx(target, abs=0.03)


def test_density_counts_zeros_of_the_matrices_of_blocks():
    model = make("llama")
    assert density(model) == 1
    weight = model.model.layers[0].mlp.gate_proj.weight
    total = sum(one.numel() for one in model.model.layers.parameters() if one.dim() > 1)
    with torch.no_grad():
        weight[:3] = 0
        model.lm_head.weight.zero_()  # of no block
    assert density(model) == pytest.approx(1 - 3 * weight.shape[1] / total)


def test_refilling_replaces_zeros_alone():
    model = make("llama")
    weight = model.model.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        weight[:3] = 0
    before = weight.clone()
    torch.manual_seed(0)
    _, notes = Full(refill=0.01).attach(model, Change((0, 1), (0.0, 0.0), None))
    assert notes == {"refilled": 3 * weight.shape[1]}
    assert torch.equal(weight[3:], before[3:])
    assert (weight[:3] - before.mean()).abs().max() < 0.06 * before.std()
    assert Full().attach(make("llama"), Change((0, 1), (0.0, 0.0), None))[1] == {}
