"""Schedules of routed MLPs: LTE's two stages, routers from calibration alone, refusals."""

import math

import pytest
import torch
from families import batches, make
from killed_runs import killed_and_whole
from trained_runs import assert_loads_anywhere, own_text

import cfsp
from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import routed_mlps
from cfsp.model.routers import LearnedRouter, most
from cfsp.plans.routes import layer_paths
from cfsp.records.record import Record
from cfsp.schedules.hearing import channel_norms, hear, predictors
from cfsp.schedules.route_makers import Heard, Predictor, Threshold, most_active
from cfsp.training.routing import Routing
from cfsp.training.routing_stages import RoutingStages

SHORT = [
    "schedule=routing",
    "sparsity=0",
    "schedule.pruner.expert_size=4",
    "schedule.pruner.learning_rate=0.03",
    "schedule.training.max_steps=40",
    "schedule.training.batch_size=4",
    "schedule.training.warmup=0",
    "schedule.training.evaluate_every=10",
]


def stages(target=0.5, **options):
    """Routers at work in a tiny model, and the loss of a batch with them."""
    model = make("llama")
    pruner = Routing(expert_size=4, **options)
    found = RoutingStages(pruner, model, find_sites(model), target)
    return model, found


def forward(model, batch=None):
    return model(**(batch or batches(1)[0])).logits


def test_the_model_begins_nearly_as_the_dense_one():
    model, _ = stages(start=9.0)
    assert torch.allclose(forward(model), forward(make("llama")), rtol=0.05, atol=0.05)


def test_the_penalty_is_that_of_the_paper_without_padding():
    model, found = stages(efficiency=0.7, separability=0.3, guard=0.02, most=0.7)
    batch = batches(1, padded=True)[0]
    found.begin_step(0.6 * 0.95)  # both weights are whole; the controller has measured nothing yet
    forward(model, batch)
    shown = batch["attention_mask"].flatten().bool()
    terms = []
    for one in found.mlps.values():
        scores = one.scores[shown]
        assert len(scores) < len(one.scores)
        terms.append(0.7 * (scores**2).mean() + 0.3 * (1 / ((scores - 0.5) ** 2 + 0.02)).mean())
    assert float(found.penalty()) == pytest.approx(float(sum(terms) / len(terms)), rel=1e-5)
    found.penalty().backward()
    assert all(one.router.last.weight.grad is not None for one in found.mlps.values())


def test_eta_rises_before_lambda():
    model, found = stages()
    sizes = []
    for progress in (0.0, 0.09, 0.18, 0.3):
        found.stage = progress / 0.6
        forward(model)
        sizes.append(float(found.penalty()))
    assert sizes[0] == 0
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=1e-4)  # eta alone
    assert sizes[3] > 1.5 * sizes[2]


def test_eta_falls_as_far_as_it_must_but_rises_only_to_its_bound():
    model, found = stages(target=0.3, efficiency=0.5, most=1.0)
    for logit, low, high in ((-8.0, 0.0, 0.02), (8.0, 2.0, 2.0)):  # all closed, then all open
        for one in found.mlps.values():
            one.router.last.weight.data.zero_()
            one.router.last.bias.data.fill_(logit)
        for step in range(40):
            forward(model)
            found.count()
            found.begin_step(0.2 + 0.005 * step)
        assert low <= found.control.factor <= high


def test_settling_makes_the_share_exact_and_freezes_the_routers():
    model, found = stages(target=0.7)
    for _ in range(4):
        found.begin_step(0.1)
        forward(model)
        found.penalty()
    found.begin_step(0.6)
    assert found.settled
    forward(model)
    assert float(found.penalty()) == 0
    shares = [one.chosen.float().mean() for one in found.mlps.values()]
    assert float(sum(shares) / 2) == pytest.approx(0.3, abs=0.03)
    assert found.removed() == pytest.approx(0.7, abs=0.03)
    assert not any(weight.requires_grad for weight in found.routers())


@pytest.mark.parametrize(("bias", "told"), [(-99.0, "model.layers.0.mlp 0%"), (99.0, "100%")])
def test_a_router_that_collapses_is_named(bias, told):
    model, found = stages()
    names = [*found.mlps][: 1 if bias < 0 else 2]
    for name in names:
        found.mlps[name].router.last.weight.data.zero_()
        found.mlps[name].router.last.bias.data.fill_(bias)
    forward(model)
    found.penalty()
    with pytest.raises(ValueError, match=f"routers collapsed .*{told}.* expected a smaller"):
        found.settle()


def test_a_state_is_restored():
    model, found = stages()
    forward(model)
    found.penalty()
    found.begin_step(0.2)
    found.begin_step(0.7)
    _, again = stages()
    again.restore({name: one.clone() for name, one in found.state().items()})
    assert again.settled
    assert (again.offset, again.control) == (found.offset, found.control)
    assert torch.equal(again.histogram, found.histogram)


def test_routes_keep_what_the_model_computes():
    model, found = stages()
    for weight in found.routers():
        weight.data += 0.5 * torch.randn_like(weight)
    forward(model)
    found.penalty()
    found.settle()
    with torch.no_grad():
        expected = forward(model)
    routes = found.routes()
    found.detach()
    assert not routed_mlps(model)
    cfsp.apply(cfsp.PrunePlan(tuple(routes)), model)
    with torch.no_grad():
        assert torch.allclose(forward(model), expected, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(route.order, torch.arange(40)) for route in routes)


def test_a_run_trains_routes_and_loads_anywhere(cli, text_file, tmp_path):
    words = [*SHORT, *own_text(text_file), "schedule.active=0.4", f"save={tmp_path}/out"]
    words += [
        "evaluation=[perplexity_text,routing]",
        "evaluation.routing.text._target_=cfsp.data.texts.Files",
    ]
    words += ["~evaluation.routing.text.split", f"+evaluation.routing.text.paths={text_file}"]
    words += [f"evaluation.perplexity_text.text.paths={text_file}", "evaluation.perplexity_text.window=32"]
    words += ["evaluation.routing.window=16", "evaluation.routing.windows=16"]
    record = Record.load(cli(*words))
    assert record.schedule_training["asked"] == pytest.approx(0.6)
    assert record.schedule_training["met"]
    assert record.sparsity["sites"] == 0
    measured = {name.partition("/")[0]: one.value for name, one in record.metrics["pruned"].items()}
    assert measured["active_share"] == pytest.approx(0.4, abs=0.08)
    assert record.metrics["dense"][f"active_share/files:{text_file.name}"].value == 1
    assert_loads_anywhere(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(tiny_overrides, text_file, tmp_path):
    words = [*tiny_overrides(), *SHORT, *own_text(text_file), "schedule.active=0.4"]
    words += ["schedule.training.max_steps=120", "evaluation=[perplexity_text]"]
    words += [f"evaluation.perplexity_text.text.paths={text_file}", "evaluation.perplexity_text.window=32"]
    found, expected, err = killed_and_whole(words, tmp_path, "*/schedule/checkpoint-80")  # hard since step 72
    assert "begins anew" not in err
    for key in ("steps", "tokens", "reached", "active", "held_out_curve"):
        assert found.schedule_training[key] == expected.schedule_training[key], key
    for name, metric in expected.metrics["pruned"].items():
        assert found.metrics["pruned"][name].value == pytest.approx(metric.value, rel=1e-6)


def test_routers_begin_as_predictors_of_the_most_active_experts():
    """They are right more often than chance, and their logits vary by 1."""
    model, data = make("llama"), batches(6, size=4, tokens=20)
    sites = find_sites(model)
    initial = predictors(model, sites, data, 4, 0.5, seed=0)
    for site, heard in hear(model, sites, data):
        router = LearnedRouter(32, 10, 4)
        router.load_state_dict(initial[site.name])
        logits = router.logits(heard.inputs).detach()
        assert float(logits.std()) == pytest.approx(1, abs=1e-3)
        wanted = most_active(heard, 4, 0.5)
        assert float((most(logits, 5) == wanted.bool()).float().mean()) > 0.6  # 0.5 by chance
        sums = (heard.activations.abs() * heard.norms[-1]).view(len(wanted), 10, 4).sum(2)
        assert bool(
            (sums[wanted.bool()].view(-1, 5).amin(1) >= sums[~wanted.bool()].view(-1, 5).amax(1)).all()
        )


def test_the_teacher_that_the_objective_names_is_imitated(cli, text_file, tiny_checkpoint):
    words = [*SHORT, *own_text(text_file), "schedule.active=0.4", "schedule.training.max_steps=12"]
    words += ["recovery/objective@schedule.objective=distillation", "evaluation=[]"]
    record = Record.load(cli(*words, f"schedule.objective.teacher={tiny_checkpoint}"))
    assert record.schedule_training["teacher"]["path"] == str(tiny_checkpoint)


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
        forward(model, data[0])
    for one in routed_mlps(model).values():
        assert float(one.shares().mean()) == pytest.approx(0.5, abs=0.1)


def heard_of(x, gate):
    """What is heard of an MLP of ReLU with these inputs and weights."""
    return Heard(x, (x @ gate.T).relu(), [gate.norm(dim=0), torch.ones(len(gate))], gate)


def test_deja_vu_does_not_want_neurons_that_are_idle():
    torch.manual_seed(0)
    heard = heard_of(torch.randn(300, 16) - 1.0, torch.randn(40, 16).abs())  # few are positive
    assert float((heard.activations > 0).float().mean()) < 0.3
    maker = Predictor(expert_size=1, hidden=8, signs=True)
    wanted = maker.targets(heard.activations, 20)
    assert torch.equal(wanted.bool(), heard.activations > 0)


def test_moefications_predictor_begins_with_the_experts_mean_weights():
    heard = heard_of(torch.randn(8, 16), torch.randn(12, 16))
    router = Predictor(expert_size=4, epochs=1, learning_rate=0.0).make(heard, 0.5, seed=0)
    torch.testing.assert_close(router.first.weight, heard.weights.view(3, 4, 16).mean(1))
    assert torch.equal(router.last.weight, torch.eye(3))
    order = torch.randperm(12)
    assert torch.equal(heard.ordered(order).activations, (heard.inputs @ heard.weights[order].T).relu())


def test_wina_takes_the_same_number_of_inputs_for_every_token():
    torch.manual_seed(0)
    heard = heard_of(torch.randn(50, 16), torch.randn(12, 16))
    router = Threshold(weighted=True, per_token=True).make(heard, 0.25, seed=0)
    found = router.thin(heard.inputs, 0)
    scores = heard.inputs.abs() * heard.norms[0]
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
    schedule = RoutedOnce(maker=instantiate(made), active=0.5, sparsity=0.0)
    return cfsp.plan(model, data, criterion="learned", allocator="uniform", schedule=schedule)


def test_what_is_heard_are_the_inputs_of_the_layers():
    model, data = make("llama"), batches(3, padded=True)
    found = {site.name: heard for site, heard in hear(model, find_sites(model), data)}
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


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparsity=0.2"], "a routed MLP loses no weight; expected sparsity=0"),
        (["schedule.active=1.0"], r"schedule.active=1.0: expected a share of the units"),
        (["schedule.pruner.expert_size=7"], "expert_size=7: it does not divide the 64 neurons of"),
        (["schedule.pruner.start=0.0"], "scores begin at 0.50, and the separability term has its pole"),
        (["schedule.pruner.guard=0.0"], "guard=0; expected more than 0"),
        (["schedule.pruner.most=0.1"], "most=0.1 is below efficiency=0.5"),
        (
            ["recovery/parameters@schedule.parameters=frozen"],
            "expected recovery/parameters@schedule.parameters=full, without",
        ),
        (["sites=[attention]"], "only neurons can be routed; expected sites=\\[mlp\\]"),
        (["criterion=cfsp"], "expected criterion=learned, allocator=uniform and compensation=none"),
        (["schedule.training.checkpointing=true"], "needs the scores of every forward pass"),
    ],
)
def test_what_cannot_work_is_refused_before_training(cli, text_file, words, message):
    with pytest.raises(ValueError, match=message):
        cli(*SHORT, *own_text(text_file), *words)


def test_the_line_of_a_threshold_is_its_logit():
    assert Routing(threshold=0.5, expert_size=4)
    _model, found = stages(threshold=0.7, start=3.0)
    assert found.line == pytest.approx(math.log(0.7 / 0.3))
    assert found.mlps["model.layers.0.mlp"].router.threshold == 0.7
