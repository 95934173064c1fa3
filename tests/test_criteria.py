"""Criteria: closed forms, and what every criterion must obey."""

from dataclasses import dataclass, field

import pytest
import torch
from families import FAMILIES, all_kinds, batches, make, most_distinct

from cfsp.criteria.cfsp import CFSP
from cfsp.criteria.flap import FLAP
from cfsp.criteria.magnitude import Magnitude
from cfsp.criteria.wanda_sp import WandaSP
from cfsp.model.blocks import is_causal
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import OfKind
from cfsp.model.views import UnitView
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.surgery import apply
from cfsp.running.build import build, choice_config, choices
from cfsp.statistics.collect import collect


@dataclass
class Weights(OfKind):
    """A hand-made site. consumers: [units, span, outputs]; producers: [units, span, inputs]"""

    consumer: torch.Tensor
    made_by: list[torch.Tensor] = field(default_factory=list)
    kind: str = "mlp"
    name: str = "hand.mlp"

    @property
    def units(self):
        return self.consumer.shape[0]

    @property
    def span(self):
        return self.consumer.shape[1]

    def consumers(self):
        return [self.consumer]

    def producers(self):
        return self.made_by

    def members(self):
        return [*self.made_by, self.consumer]

    def totals(self, function):
        return sum(function(weight).flatten(1).sum(1) for weight in self.members())


DOWN = torch.tensor([[0.5, -0.1, 0.3, 0.0], [-0.2, 0.4, 0.1, 0.6]])
UP = torch.tensor([[0.3, -0.3], [0.1, 0.2], [-0.4, 0.4], [0.0, 0.5]])
GATE = torch.tensor([[0.2, 0.1], [0.6, -0.2], [0.1, 0.1], [-0.3, 0.3]])
NORM = torch.tensor([2.0, 1.0, 0.5, 0.25])
MLP = Weights(DOWN.T[:, None], [UP[:, None], GATE[:, None]])
STAT = {"input_sq_mean": NORM.double() ** 2, "input_var": torch.tensor([4.0, 1.0, 0.0, 9.0]).double()}


SCORING = [name for name in choices("criterion") if name != "learned"]
"""Criteria with scores of their own."""


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_cfsp_reference_vectors():
    close(CFSP("paper").score(MLP, STAT), [4.19762, 1.533572, 0.590952, 0.296429])
    close(CFSP("released").score(MLP, STAT), [3.0, 1.5, 0.75, 0.375])


def test_wanda_reference_vector():
    close(WandaSP().score(MLP, STAT), [0.7, 0.25, 0.1, 0.075])


def test_magnitude_closed_form():
    close(Magnitude(weights="consumers").score(MLP, {}), DOWN.norm(dim=0).tolist())
    everything = (DOWN.square().sum(0) + UP.square().sum(1) + GATE.square().sum(1)).sqrt()
    close(Magnitude().score(MLP, {}), everything.tolist())
    close(Magnitude(norm=1.0, weights="consumers").score(MLP, {}), DOWN.abs().sum(0).tolist())


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("ifv", [4.0, 1.0, 0.0, 9.0]),
        ("wifv", [4 * 0.29, 1 * 0.17, 0.0, 9 * 0.36]),
        ("wifn", [0.7, 0.25, 0.1, 0.075]),
    ],
)
def test_flap_closed_forms(metric, expected):
    close(FLAP(metric, standardise=False).score(MLP, STAT), expected)
    values = torch.tensor(expected).double()
    close(FLAP(metric).score(MLP, STAT), ((values - values.mean()) / values.std()).tolist())


def test_flap_averages_a_head_after_standardising_its_channels():
    heads = Weights(torch.ones(2, 2, 1), kind="attention")
    stat = {"input_var": torch.tensor([1.0, 3.0, 0.0, 4.0]).double(), "input_sq_mean": torch.ones(4).double()}
    channels = torch.tensor([1.0, 3.0, 0.0, 4.0])
    close(FLAP().score(heads, stat), [0.0, 0.0])
    squared = channels**2
    z = (squared - squared.mean()) / squared.std()
    close(FLAP(attention_power=2.0).score(heads, stat), [z[:2].mean(), z[2:].mean()])


def test_flap_of_a_constant_site_is_zero_not_nan():
    stat = {"input_var": torch.ones(4).double(), "input_sq_mean": torch.ones(4).double()}
    assert FLAP("ifv").score(MLP, stat).tolist() == [0, 0, 0, 0]


def test_span_above_one_closed_forms():
    """Two heads of two channels, one output; the first head's channels carry all of the weight."""
    heads = Weights(
        torch.tensor([[[1.0], [3.0]], [[0.0], [4.0]]]),  # [units, span, outputs]
        [torch.tensor([[[2.0], [0.0]], [[1.0], [1.0]]])],
        kind="attention",
    )
    stat = {"input_sq_mean": torch.tensor([4.0, 1.0, 9.0, 1.0]).double()}
    close(WandaSP().score(heads, stat), [(1 * 2 + 3 * 1) / 2, (0 * 3 + 4 * 1) / 2])
    shares = torch.tensor([[2.0, 3.0], [0.0, 4.0]]) / 9  # |W| n over their sum
    producer = torch.tensor([2 / 4 / 2, (1 / 4 + 1 / 4) / 2])  # mean over the member's own channels
    norm = torch.tensor([[2.0, 1.0], [3.0, 1.0]])
    close(CFSP().score(heads, stat), (norm * (shares + producer[:, None])).mean(1).tolist())
    close(CFSP("released").score(heads, stat), [1.5 * 2, 2.0 * 2])  # mean n x members / outputs


def test_flap_of_a_single_channel_is_zero_not_nan():
    one = Weights(torch.ones(1, 1, 2))
    assert FLAP("ifv").score(one, {"input_var": torch.ones(1).double()}).tolist() == [0]


def test_dead_channels_score_zero_not_nan():
    dead = Weights(torch.zeros(4, 1, 2), [UP[:, None], GATE[:, None]])
    stat = {"input_sq_mean": torch.zeros(4).double(), "input_var": torch.zeros(4).double()}
    for criterion in (CFSP(), CFSP("released"), WandaSP()):
        assert criterion.score(dead, stat).tolist() == [0, 0, 0, 0]


def scores_of(name, model, sites):
    criterion = build(choice_config("criterion", name, seed=0))
    stats = collect(model, sites, batches(), criterion.needs)
    return [criterion.score(UnitView(model, site), stats[site.name]) for site in sites]


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("family", most_distinct(FAMILIES))
@pytest.mark.parametrize("name", SCORING)
def test_one_finite_score_per_unit_on_every_family(name, model):
    if name == "taylor" and not is_causal(model):
        pytest.skip("taylor needs a model that predicts the next token")
    kinds = build(choice_config("criterion", name, seed=0)).kinds
    sites = find_sites(model, [kind for kind in all_kinds(model) if kind in kinds])
    for site, score in zip(sites, scores_of(name, model, sites), strict=True):
        assert score.shape == (site.units,)
        assert score.isfinite().all()
        assert len(score.unique()) > 1


@pytest.mark.parametrize("name", [name for name in SCORING if name not in ("chance", "depth")])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_permuting_units_permutes_scores(name, kind):
    model = make("gpt2")
    site = find_sites(model, [kind])[0]
    (before,) = scores_of(name, model, [site])
    order = torch.randperm(site.units, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for member in site.members:
            module = model.get_submodule(member.module)
            here, there = member.places(range(site.units)), member.places(order)
            rows = module.weight.movedim(member.dim, 0)
            rows[here] = rows[there].clone()
            if member.bias:
                module.bias[here] = module.bias[there].clone()
    (after,) = scores_of(name, model, [site])
    torch.testing.assert_close(after, before[order], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scales_with_the_consumer"),
    [
        ("magnitude", True),
        ("wanda_sp", True),
        ("flap", True),
        ("cfsp", True),
        ("taylor", True),
        ("chance", False),
    ],
)
def test_scaling_one_units_consumer_weights(name, scales_with_the_consumer):
    model = make("llama")
    site = find_sites(model, ["mlp"])[0]
    (before,) = scores_of(name, model, [site])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 5] *= 10
    (after,) = scores_of(name, model, [site])
    assert (after[5] > before[5] * (1 + 1e-3) + 1e-6) == scales_with_the_consumer


def test_released_cfsp_ignores_the_weights():
    weaker = Weights(
        DOWN.T[:, None] * torch.tensor([9.0, 1, 1, 1])[:, None, None], [UP[:, None], GATE[:, None]]
    )
    assert torch.equal(CFSP("released").score(weaker, STAT), CFSP("released").score(MLP, STAT))
    assert not torch.equal(CFSP("paper").score(weaker, STAT), CFSP("paper").score(MLP, STAT))


def test_chance_depends_on_the_seed_and_the_site():
    chance = [build(choice_config("criterion", "chance", seed=seed)) for seed in (0, 0, 1)]
    other = Weights(MLP.consumer, name="other.mlp")
    same, again, seeded = (criterion.score(MLP, {}) for criterion in chance)
    assert torch.equal(same, again)
    assert not torch.equal(same, seeded)
    assert not torch.equal(same, chance[0].score(other, {}))


@pytest.mark.parametrize("make_wrong", [lambda: CFSP("x"), lambda: FLAP("x"), lambda: Magnitude(weights="x")])
def test_unknown_variants_list_the_choices(make_wrong):
    with pytest.raises(ValueError, match="'x': expected one of"):
        make_wrong()


def test_scores_are_of_the_cut_model_after_a_cut():
    model = make("llama")
    site = find_sites(model, ["mlp"])[0]
    (before,) = scores_of("magnitude", model, [site])
    apply(PrunePlan((Cut(site.name, site.units, (3, 4, 30)),)), [site], model)
    (after,) = scores_of("magnitude", model, find_sites(model, ["mlp"])[:1])
    torch.testing.assert_close(after, before[[3, 4, 30]])
