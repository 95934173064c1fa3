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
from cfsp.records.record import Record
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
    assert float(found.penalty().detach()) == pytest.approx(float(sum(terms) / len(terms)), rel=1e-5)
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
    assert float(sum(shares) / 2) == pytest.approx(0.3, abs=0.02)
    assert found.removed() == pytest.approx(0.7, abs=0.02)
    assert not any(weight.requires_grad for weight in found.routers())


@pytest.mark.parametrize("target", [0.05, 0.31, 0.5, 0.5001, 0.8, 0.9, 0.97])
def test_the_shift_gives_the_share_of_the_logits_themselves(target):
    _, found = stages(target=target)
    drawn = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(20_000, 10, generator=drawn) + place for place, name in enumerate(found.mlps)}
    found.logits, found.shown = logits, None
    found.count()
    found.shift()
    scores = torch.cat([one.flatten() for one in logits.values()]) + found.offset
    assert float((scores > found.line).float().mean()) == pytest.approx(1 - target, abs=2e-3)
    assert found.removed() == pytest.approx(target, abs=2e-3)


@pytest.mark.parametrize(("bias", "told"), [(-99.0, "model.layers.0.mlp 0%"), (99.0, "100%")])
def test_a_router_that_collapses_is_named(bias, told):
    model, found = stages()
    names = [*found.mlps][: 1 if bias < 0 else 2]
    forward(model)
    found.penalty()  # open at first, as in a training
    for name in names:
        found.mlps[name].router.last.weight.data.zero_()
        found.mlps[name].router.last.bias.data.fill_(bias)
    for _ in range(80):
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


def test_adapters_may_be_the_second_stage(cli, text_file):
    """Routers are hard at the end of a short adaptation, and a recovery does not count them as trained."""
    words = [*SHORT, *own_text(text_file), "schedule.active=0.4", "schedule.training.max_steps=12"]
    words += ["schedule.pruner.adaptation=0.01", "recovery=lora", "recovery/data=text", "evaluation=[]"]
    words += [f"recovery.data.sources.text.text.paths={text_file}", "recovery.data.window=16"]
    words += ["recovery.data.held_out=8", "recovery.training.max_steps=4"]
    record = Record.load(cli(*words))
    assert record.schedule_training["pruner"] == "Routing"
    assert record.training["steps"] == 4
    assert 0 < record.training["trainable"] < record.parameters["pruned"]["model"]


def test_the_teacher_that_the_objective_names_is_imitated(cli, text_file, tiny_checkpoint):
    words = [*SHORT, *own_text(text_file), "schedule.active=0.4", "schedule.training.max_steps=12"]
    words += ["recovery/objective@schedule.objective=distillation", "evaluation=[]"]
    record = Record.load(cli(*words, f"schedule.objective.teacher={tiny_checkpoint}"))
    assert record.schedule_training["teacher"]["path"] == str(tiny_checkpoint)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparsity=0.2"], "a routed MLP loses no weight; expected sparsity=0"),
        (["schedule.active=1.0"], r"schedule.active=1.0: expected a share of the units"),
        (["schedule.pruner.start=-1000"], r"start=-1000: scores begin at 0.00, .* start=0.41 or more"),
        (["schedule.pruner.expert_size=7"], "expert_size=7: it does not divide the 64 neurons of"),
        (["schedule.pruner.start=0.0"], "scores begin at 0.50, and the separability term has its pole"),
        (["schedule.pruner.threshold=0.95"], "scores begin at 0.88, .* expected .*: start=3.18 or more"),
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
