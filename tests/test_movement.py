"""Movement pruning: gates, their gradients, the controller, and masked models that agree with cut ones."""

import math

import pytest
import torch
from families import FAMILIES, batches, make, most_distinct
from masked import attached, sites_of
from torch.nn.utils import parametrize
from transformers import TrainingArguments

import cfsp
from cfsp.model.views import unit_cost
from cfsp.model.weights import weight_of
from cfsp.plans.plan import PrunePlan
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.training.movement import Movement
from cfsp.training.movement_options import MASKS
from cfsp.training.trainer import OF_SCORES, LossTrainer

VARIANTS = ("struct", "hybrid", "block")
ENDING = 0.6
"""Progress at which masks are decided: the default cooldown is 0.4."""


@pytest.mark.parametrize("family", most_distinct(FAMILIES))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_masked_model_and_the_cut_one_agree(family, variant):
    check_the_cut(make(family), variant, 2 if variant != "struct" and family != "starcoder2" else 1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_agree_with_every_mask(mask, variant):
    check_the_cut(make("llama"), variant, 2, mask=mask)


def check_the_cut(model, variant, tile, **options):
    """The masked model computes what the cut one does, and no unit that stays is dead."""
    model = model.double()
    pruning = attached(model, 0.4, variant=variant, tile=tile, **options)
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
        assert tuple(used.nonzero().flatten().tolist()) == keep[site.name]
    state = PartlyCut(model, sites)
    cfsp.apply(PrunePlan(tuple(state.cut(site, keep[site.name]) for site in sites)), model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, masked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
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


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("variant", ["struct", "block"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("equal", [False, True])
def test_no_more_is_closed_than_is_due(mask, variant, equal):
    """Scores that fall together, to the same value or not; one unit more, because units are whole."""
    pruning = attached(make("llama"), 0.5, mask=mask, variant=variant, tile=4)
    for _, _, gate in pruning.all_gates():
        gate.scores.data.mul_(not equal).sub_(20)
    unit = max(pruning.cost.values()) / pruning.total
    for progress in (0.2, 0.4, 0.55):
        pruning.begin_step(progress)
        assert 0 < pruning.removed() <= 0.5 * pruning.due + unit
        assert pruning.reached == pruning.removed()
    before = pruning.reached
    pruning.begin_step(ENDING)
    assert pruning.reached == before


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_decision_hardly_changes_the_masks_of_the_step_before(mask, variant):
    """Neither units nor zeros inside the units that stay jump."""
    pruning = attached(make("llama"), 0.5, mask=mask, variant=variant)
    for _, _, gate in pruning.all_gates():
        gate.scores.data -= 20  # below every threshold
    unit = max(pruning.cost.values()) / pruning.total

    def zeros() -> float:
        weights = [weight_of(pruning.model.get_submodule(path)) for _, path, _ in pruning.all_gates()]
        return sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)

    pruning.model.eval()
    pruning.begin_step(ENDING - 1e-3)
    units, before = pruning.removed(), zeros() if mask != "hard_concrete" else None
    pruning.begin_step(ENDING)
    assert pruning.settled
    assert abs(pruning.removed() - units) <= unit
    if before is not None:  # an open one of these is zero too if its score is so low
        assert abs(zeros() - before) <= 0.03


@pytest.mark.parametrize("mask", ["soft", "hard"])
@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_the_penalty_closes_the_asked_share_before_the_decision(mask, strength):
    """Units pull their scores up by different forces, as a loss does; the penalty overcomes enough."""
    pruning = attached(make("llama"), 0.5, mask=mask, variant="struct")
    gates = [gate for _, _, gate in pruning.all_gates()]
    forces = [torch.rand_like(gate.scores) / len(gate.scores) for gate in gates]
    optimizer = torch.optim.Adam([gate.scores for gate in gates], lr=20 / 200)
    for step in range(int(200 * ENDING)):
        pruning.begin_step(step / 200)
        pulled = sum((force * gate.scores).sum() for force, gate in zip(forces, gates, strict=True))
        optimizer.zero_grad()
        (strength * pruning.penalty() - pulled).backward()
        optimizer.step()
    assert pruning.due > 0.99
    assert pruning.reached == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("mask", [name for name, kind in MASKS.items() if kind.steered])
def test_the_penalty_stays_while_as_much_is_closed_as_is_due(mask):
    """Else scores that have fallen rise again, and what was closed opens."""
    pruning = attached(make("llama"), 0.5, mask=mask, variant="struct")
    for _, _, gate in pruning.all_gates():
        gate.scores.data -= 20
    unit = max(pruning.cost.values()) / pruning.total
    for step in range(30):
        pruning.begin_step(0.2 + step / 100)
        assert abs(pruning.control.error) <= unit
        assert pruning.control.factor == pytest.approx(1, abs=0.3)


def test_scores_above_the_threshold_stay_open_until_the_decision():
    pruning = attached(make("llama"), 0.5, variant="struct")
    for _, _, gate in pruning.all_gates():
        gate.scores.data.abs_().add_(1)
    pruning.begin_step(ENDING - 1e-3)
    assert pruning.removed() == pruning.reached == 0
    pruning.begin_step(ENDING)
    assert pruning.removed() >= 0.5


def test_magnitude_keeps_the_largest_weights_and_learns_nothing():
    model = make("bert")
    site = next(site for site in sites_of(model) if site.units_are_neurons)
    weight = weight_of(model.get_submodule(site.consumers[0].module)).detach().abs().mean(0)
    pruning = attached(model, 0.5, mask="magnitude", variant="struct")
    assert pruning.groups() == []
    pruning.begin_step(ENDING)
    is_open = pruning.is_open(site)
    assert weight[is_open].min() > weight[~is_open].max()


@pytest.mark.parametrize("mask", ["soft", "top", "budget"])
def test_what_costs_more_goes_no_sooner(mask):
    """Heads cost many times what neurons cost; equal scores per parameter remove the same part of both."""
    pruning = attached(make("llama"), 0.5, mask=mask, variant="struct")
    for _, _, gate in pruning.all_gates():
        gate.scores.data = torch.linspace(-9, -3, gate.scores.numel())
    pruning.begin_step(ENDING)
    for site in pruning.sites:
        assert float(pruning.is_open(site).float().mean()) == pytest.approx(0.5, abs=0.3), site.name


def test_top_closes_tiles_of_each_weight_and_budget_those_of_all():
    closed = {}
    for mask in ("top", "budget"):
        pruning = attached(make("llama"), 0.4, mask=mask, variant="block", tile=4)
        first, *_, last = [gate for _, _, gate in pruning.all_gates()]
        first.scores.data -= 100
        last.scores.data += 100
        pruning.begin_step(0.3)
        closed[mask] = [float((gate.mask == 0).float().mean()) for gate in (first, last)]
    due = 0.4 * pruning.due
    assert closed["top"] == pytest.approx([due, due], abs=0.05)
    assert closed["budget"][0] > 0.8  # but for tiles of units that stay
    assert closed["budget"][1] == 0


@pytest.mark.parametrize("variant", ["struct", "block"])
def test_top_and_budget_differ_in_tiles_alone(variant):
    """The allocator ranks units of all sites together, whichever mask there is."""
    closed = []
    for mask in ("top", "budget"):
        pruning = attached(make("llama"), 0.4, mask=mask, variant=variant, tile=4)
        for place, (_, _, gate) in enumerate(pruning.all_gates()):
            gate.scores.data += place  # scores of one weight are lower than those of another
        pruning.begin_step(0.4)
        closed.append(torch.cat([gate.mask.flatten() for _, _, gate in pruning.all_gates()]))
        assert 0 < closed[-1].mean() < 1
    assert torch.equal(*closed) == (variant == "struct")


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
    for _, _, gate in pruning.all_gates():
        gate.scores.data -= 3
    for progress in (0.2, 0.3, 0.4):
        pruning.begin_step(progress)
    again = attached(make("bert"), 0.5, variant="struct")
    again.restore(pruning.state())
    assert again.control == pruning.control
    assert again.reached == pruning.reached > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decision_goes_on_from_the_models_state(variant):
    model, other = make("llama"), make("llama")
    pruning, again = attached(model, 0.5, variant=variant), attached(other, 0.5, seed=1, variant=variant)
    pruning.begin_step(ENDING)
    other.load_state_dict(model.state_dict())
    again.restore(pruning.state())
    again.begin_step(0.8)
    assert again.decided() == pruning.decided()
    inputs = batches(count=1)[0]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, other(**inputs).logits)


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


def test_costs_are_those_of_the_model_without_gates():
    """A masked weight is computed when it is read, and the next one may have its place in memory."""
    model = make("llama_mha_biased")
    sites = sites_of(model)
    before = [unit_cost(model, site) for site in sites]
    attached(model, variant="hybrid", tile=2).close(-math.inf)
    with torch.no_grad():
        assert [unit_cost(model, site) for site in sites] == before
