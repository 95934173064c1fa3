"""Routers from calibration texts alone, and what calibration shows of MLPs."""

import pytest
import torch
import torch.nn.functional as F
from families import batches, make

import cfsp
from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import routed_mlps
from cfsp.model.routers import LearnedRouter, most
from cfsp.plans.routes import layer_paths
from cfsp.schedules.mlp_samples import channel_norms, predictors, sample_mlps
from cfsp.schedules.route_makers import MLPSamples, Predictor, Threshold, most_active


@pytest.mark.parametrize("count", [5, 2])
def test_routers_begin_as_predictors_of_the_most_active_experts(count):
    """They are right more often than chance; their logits vary by 1 around 0, whatever the share."""
    model, data = make("llama"), batches(6, size=4, tokens=20)
    sites = find_sites(model)
    initial = predictors(model, sites, data, 4, count / 10, seed=0)
    for site, samples in sample_mlps(model, sites, data):
        router = LearnedRouter(32, 10, 4)
        router.load_state_dict(initial[site.name])
        logits = router.logits(samples.inputs).detach()
        assert float(logits.std()) == pytest.approx(1, abs=1e-3)
        assert float(logits.mean()) == pytest.approx(0, abs=1e-3)
        wanted = most_active(samples, 4, count / 10)
        right = float((most(logits, count) & wanted.bool()).float().sum(1).mean())
        assert right > 1.2 * count * count / 10  # of chance
        sums = (samples.activations.abs() * samples.norms[-1]).view(len(wanted), 10, 4).sum(2)
        assert bool(
            (
                sums[wanted.bool()].view(-1, count).amin(1)
                >= sums[~wanted.bool()].view(len(sums), -1).amax(1)
            ).all()
        )


@pytest.mark.parametrize("maker", ["moefication", "deja_vu", "oracle", "teal", "wina"])
def test_routers_without_training_use_the_asked_share(maker):
    model, data = make("llama"), batches(6, size=4, tokens=20)
    options = {"schedule": "routed_once", "criterion": "learned", "allocator": "uniform", "sparsity": 0.0}
    size = {} if maker in ("deja_vu", "teal", "wina") else {"maker.expert_size": 4}
    from cfsp.running.build import choices

    assert maker in choices("schedule/maker")
    plan = planned(model, data, maker, size, options)
    cfsp.apply(plan, model)
    with torch.no_grad():
        model(**data[0])
    for one in routed_mlps(model).values():
        assert float(one.shares().mean()) == pytest.approx(0.5, abs=0.1)
        assert not any(weight.requires_grad for weight in one.router.parameters())


def samples_of(x, gate):
    """What is samples of an MLP of ReLU with these inputs and weights."""
    return MLPSamples(x, (x @ gate.T).relu(), [gate.norm(dim=0), torch.ones(len(gate))], gate)


def test_deja_vu_does_not_want_neurons_that_are_idle():
    torch.manual_seed(0)
    samples = samples_of(torch.randn(300, 16) - 1.0, torch.randn(40, 16).abs())  # few are positive
    assert float((samples.activations > 0).float().mean()) < 0.3
    maker = Predictor(expert_size=1, hidden=8, signs=True)
    wanted = maker.targets(samples.activations, 20)
    assert torch.equal(wanted.bool(), samples.activations > 0)


def test_moefications_predictor_begins_with_the_experts_mean_directions():
    samples = samples_of(torch.randn(8, 16), torch.randn(12, 16))
    router = Predictor(expert_size=4, epochs=1, learning_rate=0.0).make(samples, 0.5, seed=0)
    torch.testing.assert_close(router.first.weight, F.normalize(samples.weights).view(3, 4, 16).mean(1))
    assert torch.equal(router.last.weight, torch.eye(3))
    order = torch.randperm(12)
    assert torch.equal(samples.ordered(order).activations, (samples.inputs @ samples.weights[order].T).relu())


def test_wina_takes_the_same_number_of_inputs_for_every_token():
    torch.manual_seed(0)
    samples = samples_of(torch.randn(50, 16), torch.randn(12, 16))
    router = Threshold(weighted=True, per_token=True).make(samples, 0.25, seed=0)
    found = router.thin(samples.inputs, 0)
    scores = samples.inputs.abs() * samples.norms[0]
    assert bool((found.sum(1) == 4).all())
    used, left = scores.masked_fill(~found, torch.inf).amin(1), scores.masked_fill(found, 0).amax(1)
    assert bool((used >= left).all())


def planned(model, data, maker, size, options):
    """The plan of a maker, built from its YAML file."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from cfsp.running.build import CONF
    from cfsp.schedules.routed import RoutedOnce

    made = OmegaConf.load(CONF / "schedule" / "maker" / f"{maker}.yaml")
    for name, value in size.items():
        made[name.removeprefix("maker.")] = value
    schedule = RoutedOnce(maker=instantiate(made), active=options.get("active", 0.5), sparsity=0.0)
    return cfsp.plan(model, data, criterion="learned", allocator="uniform", schedule=schedule)


def test_samples_are_the_inputs_of_the_layers():
    model, data = make("llama"), batches(3, padded=True)
    found = {site.name: samples for site, samples in sample_mlps(model, find_sites(model), data)}
    rows = []
    site = find_sites(model)[1]
    handle = model.get_submodule(layer_paths(site)[1]).register_forward_pre_hook(
        lambda module, inputs: rows.append(inputs[0].reshape(-1, 40))
    )
    with torch.no_grad():
        for batch in data:
            model(**batch)
    handle.remove()
    shown = torch.cat([batch["attention_mask"].flatten().bool() for batch in data])
    assert torch.allclose(found[site.name].activations, torch.cat(rows)[shown], rtol=1e-4, atol=1e-5)
    norms, mlp = channel_norms(model, site), model.model.layers[1].mlp
    assert torch.allclose(norms[0], mlp.gate_proj.weight.norm(dim=0))
    assert torch.allclose(norms[2], mlp.down_proj.weight.norm(dim=0))
    assert [len(one) for one in norms] == [32, 32, 40]


@pytest.mark.parametrize(("active", "told"), [(0.5, False), (0.07, True)])
def test_a_share_that_whole_experts_do_not_make_is_told(active, told, capsys):
    """One of ten experts of four neurons is a tenth."""
    model, data = make("llama"), batches(2)
    options = {"criterion": "learned", "allocator": "uniform", "sparsity": 0.0, "active": active}
    planned(model, data, "oracle", {"maker.expert_size": 4}, {"schedule": "routed_once", **options})
    assert ("make 10.0% of model.layers.0.mlp active, not 7.0%" in capsys.readouterr().err) is told


def test_a_share_that_whole_experts_miss_by_half_is_refused():
    options = {"criterion": "learned", "allocator": "uniform", "sparsity": 0.0, "active": 0.03}
    options |= {"schedule": "routed_once"}
    with pytest.raises(ValueError, match="active=0.03: whole experts make 10.0% of model"):
        planned(make("llama"), batches(2), "oracle", {"maker.expert_size": 4}, options)
