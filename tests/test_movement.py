"""Movement pruning: gates, their gradients, the controller, and masked models that agree with cut ones."""

import math

import pytest
import torch
from families import FAMILIES, batches, kinds_of, make, most_distinct
from torch.nn.utils import parametrize
from transformers import TrainingArguments

import cfsp
from cfsp.allocators.global_rank import GlobalRank
from cfsp.model.parameter_count import density
from cfsp.model.weights import weight_of
from cfsp.plans.plan import PrunePlan
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.training.base import Change
from cfsp.training.control import Controller, cubic
from cfsp.training.full import Full
from cfsp.training.learned_gates import HardConcrete, Step, TileGate, UnitGate, lowest_kept
from cfsp.training.movement import Movement
from cfsp.training.trainer import OF_SCORES, LossTrainer

ENDING = 0.6
"""Progress at which masks are decided: the default cooldown is 0.4."""


def sites_of(model):
    return cfsp.find_sites(model, kinds_of(model))


def attached(model, target=0.4, seed=0, **options):
    """A pruner in a model, with random scores; the allocator ranks all units together."""
    pruner = Movement(**{"tile": 1, **options})
    sites = sites_of(model)
    pruner.check(model, sites)
    state, allocator = PartlyCut(model, sites), GlobalRank(allow_empty=True)
    total = sum(site.units * state.cost(site) for site in sites)

    def decide(scores):
        widths = allocate(state, sites, scores, {}, allocator, math.ceil(target * total))
        return choose(sites, scores, widths, allocator)

    pruning = pruner.attach(model, sites, target, decide)
    generator = torch.Generator().manual_seed(seed)
    for _, _, gate in pruning.all_gates():
        gate.scores.data = torch.randn(gate.scores.shape, generator=generator)
    return pruning


def test_a_unit_gate_masks_the_channels_of_its_units():
    site = sites_of(make("llama"))[0]
    consumer = site.consumers[0]
    weight = torch.ones(32, site.units * consumer.span)
    gate = UnitGate(consumer, site.units, Step(), 0.0, weight)
    gate.scores.data[:] = 1
    gate.scores.data[1] = -1
    gate.threshold.fill_(0)
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
    gate.threshold.fill_(0.0)
    gate.scores.data[0, 0] = -1  # closed, and yet it has a gradient
    masked = gate(weight)
    masked.retain_grad()
    (inputs @ masked.T).square().sum().backward()
    product = masked.grad * weight
    expected = product.view(4 // tile, tile, 8 // tile, tile).sum((1, 3))
    torch.testing.assert_close(gate.scores.grad, expected)
    assert gate.scores.grad[0, 0] != 0


def test_the_threshold_closes_exactly_the_share():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.1, 0.5, 0.98, 1.0):
        assert int((scores <= lowest_kept(scores, share)).sum()) == round(50 * share)


def test_hard_concrete_gates_open_as_often_as_their_openness_says():
    torch.manual_seed(0)
    rule = HardConcrete()
    for score in (-2.0, 0.0, 1.5):
        scores = torch.full((40_000,), score)
        drawn = rule.mask(scores, torch.tensor(0.0), training=True)
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert float((drawn > 0).float().mean()) == pytest.approx(float(rule.openness(scores)[0]), abs=0.01)
    fixed = rule.mask(torch.tensor([-3.0, 0.1, 9.0]), torch.tensor(0.0), training=False)
    assert fixed.tolist() == pytest.approx([0, 1.2 * 0.52498 - 0.1, 1], abs=1e-4)


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


@pytest.mark.parametrize("family", most_distinct(FAMILIES))
@pytest.mark.parametrize("variant", ["struct", "hybrid", "block"])
def test_the_masked_model_and_the_cut_one_agree(family, variant):
    model = make(family).double()
    tile = 2 if variant != "struct" and family != "starcoder2" else 1
    pruning = attached(model, 0.4, variant=variant, tile=tile)
    pruning.begin_step(ENDING)
    keep, sites, dearest = pruning.decided(), pruning.sites, max(pruning.cost.values()) / pruning.total
    assert 0.4 <= pruning.removed() <= 0.4 + dearest
    inputs = batches(count=1)[0]
    with torch.no_grad():
        masked = model(**inputs).logits
    pruning.detach()
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    for site in sites:
        consumer = site.consumers[0]
        weight = weight_of(model.get_submodule(consumer.module)).movedim(consumer.dim, 0)
        used = weight[consumer.places(range(site.units))].reshape(site.units, -1).abs().amax(1) > 0
        assert tuple(used.nonzero().flatten().tolist()) == keep[site.name]  # no unit that stays is dead
    state = PartlyCut(model, sites)
    cfsp.apply(PrunePlan(tuple(state.cut(site, keep[site.name]) for site in sites)), model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, masked, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask", ["soft", "hard", "hard_concrete", "top", "budget", "magnitude"])
@pytest.mark.parametrize("target", [0.25, 0.6])
def test_what_is_decided_removes_the_asked_share_and_hardly_more(mask, target):
    pruning = attached(make("llama"), target, mask=mask, variant="struct")
    pruning.begin_step(ENDING)
    assert target <= pruning.removed() <= target + max(pruning.cost.values()) / pruning.total
    before = pruning.decided()
    pruning.begin_step(0.9)
    for _, _, gate in pruning.all_gates():
        gate.scores.data.neg_()
    assert pruning.decided() == before


@pytest.mark.parametrize("variant", ["struct", "block"])
@pytest.mark.parametrize("mask", ["soft", "hard", "hard_concrete"])
def test_scores_that_fall_together_close_no_more_than_is_due(mask, variant):
    pruning = attached(make("llama"), 0.5, mask=mask, variant=variant, tile=4)
    for _, _, gate in pruning.all_gates():
        gate.scores.data -= 20
    for progress in (0.2, 0.4, 0.55):
        pruning.begin_step(progress)
        assert 0 < pruning.closed() <= 0.5 * pruning.due + 1e-6
    before = pruning.closed()
    pruning.begin_step(ENDING)
    assert pruning.reached == before


def test_magnitude_keeps_the_largest_weights_and_learns_nothing():
    model = make("bert")
    site = next(site for site in sites_of(model) if site.units_are_neurons)
    weight = weight_of(model.get_submodule(site.consumers[0].module)).detach().abs().mean(0)
    pruning = attached(model, 0.5, mask="magnitude", variant="struct")
    assert pruning.groups() == []
    pruning.begin_step(ENDING)
    open_ = pruning.open_share(site) > 0
    assert weight[open_].min() > weight[~open_].max()


def test_budget_compares_scores_per_parameter():
    pruning = attached(make("llama"), 0.5, mask="budget", variant="struct")
    pruning.begin_step(ENDING)
    kept, gone = [], []
    for site in pruning.sites:
        (gate,) = pruning.gates[site.name].values()
        score = torch.sigmoid(gate.scores.detach()) / pruning.cost[site.name]
        open_ = pruning.open_share(site) > 0
        kept += score[open_].tolist()
        gone += score[~open_].tolist()
    assert min(kept) > max(gone)


@pytest.mark.parametrize("steps", [50, 400, 5000])
def test_the_rate_of_scores_follows_the_number_of_steps(steps, tmp_path):
    """A score must be able to fall to -2.2; the trainer knows the steps only when it makes its schedule."""
    model = make("bert")
    pruning = attached(model, 0.5, variant="struct")
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = LossTrainer(loss=lambda *_: None, follow=print, pruning=pruning, model=model, args=arguments)
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=steps)
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups if group.get(OF_SCORES)}
    assert rates == {max(1e-2, 20 / steps)}
    trained = [one for group in trainer.optimizer.param_groups for one in group["params"]]
    assert len(trained) == len({id(one) for one in trained}) == len([*model.parameters()])


def test_the_penalty_grows_with_the_schedule_and_stops_when_all_is_decided():
    pruning = attached(make("bert"), 0.5, variant="struct", penalties={"mlp": 2.0, "attention": 1.0})
    values = []
    for progress in (0.05, 0.2, 0.4, ENDING, 0.9):
        pruning.begin_step(progress)
        pruning.control.error = pruning.control.integral = 0.0
        values.append(float(pruning.penalty().detach()))
    assert values[0] == 0
    assert 0 < values[1] < values[2]
    assert values[3:] == [0, 0]


def test_a_pruner_goes_on_from_its_state():
    pruning = attached(make("bert"), 0.5, variant="struct")
    for progress in (0.2, 0.3, 0.4):
        pruning.begin_step(progress)
    again = attached(make("bert"), 0.5, variant="struct")
    again.restore(pruning.state())
    assert again.control == pruning.control


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 7}, r"tile=7: .* is \d+ x \d+; expected a tile that divides both sides, for instance"),
        ({"variant": "rows"}, "variant='rows'"),
        ({"mask": "topk"}, "mask='topk'"),
        ({"warmup": 0.7}, "expected a sum below 1"),
        ({"threshold": 1.5}, r"expected one in \(0, 1\)"),
        ({"penalties": {"hidden": 1.0}}, "penalties"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    model = make("bert")
    with pytest.raises(ValueError, match=message):
        Movement(**{"variant": "block", **options}).check(model, sites_of(model))


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
