"""Latency targets: the widest model within the seconds that a table gives; the clock is a planted one."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from families import batches, make
from two_stacks import make_pair

import cfsp
from cfsp.allocators.base import Budget
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.uniform import Uniform
from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Site
from cfsp.plans.subject import Subject
from cfsp.records.record import Record
from cfsp.schedules import latency_table
from cfsp.schedules.latency_table import LatencyTable, measure_table, smoothed, table_once, widths_to_time
from cfsp.schedules.latency_target import TimedSizes
from cfsp.schedules.size_target_of import size_target_of
from cfsp.storage.cache import Cache

SHAPE = {"batch": 2, "tokens": 16}


def steps_of_ten(model):
    """A second for everything else, one for each ten neurons that an MLP begins, and 1/8 for a group."""
    seconds = 1.0
    for layer in model.model.layers:
        seconds += ceil(layer.mlp.gate_proj.out_features / 10)
        seconds += layer.self_attn.k_proj.out_features / 48 if hasattr(layer.self_attn, "k_proj") else 0
    return seconds


@pytest.fixture
def clock(monkeypatch):
    """Passes take what `steps_of_ten` says; returns the models that were timed."""
    timed = []

    def seconds(self):
        timed.append(self.model)
        return steps_of_ten(self.model)

    monkeypatch.setattr(latency_table.Pass, "seconds", property(seconds))
    return timed


def count_weights(model):
    return float(sum(weight.numel() for weight in model.parameters()))


def planned(amount, **options):
    parts = {"criterion": "magnitude", "allocator": "uniform", "kinds": ["mlp"]} | options
    return cfsp.plan(make("llama"), batches(), size_target={"latency": amount, **SHAPE}, **parts)


def widths_of(plan):
    return [len(cut.keep) for cut in plan.edits]


def test_the_widths_are_the_widest_within_the_seconds(clock):
    dense = steps_of_ten(make("llama"))
    plan = planned(f"{dense - 2}s")  # a step of ten in each of both MLPs
    assert widths_of(plan) == [30, 30]
    assert plan.notes["latency"]["predicted"] == pytest.approx(dense - 2)
    model = make("llama")
    cfsp.apply(plan, model)
    assert steps_of_ten(model) == pytest.approx(dense - 2)
    assert widths_of(planned((dense - 2) / dense + 1e-6)) == [30, 30]
    assert sum(widths_of(planned((dense - 2) / dense - 1e-6))) < 60


@pytest.mark.parametrize("allocator", ["cfsp", "global_rank"])
@pytest.mark.parametrize("kinds", [["mlp"], ["mlp", "attention"]])
def test_no_unit_is_left_out_that_costs_nothing(clock, allocator, kinds):
    dense = steps_of_ten(make("llama"))
    plan = planned(f"{dense - 3.3}s", allocator=allocator, kinds=kinds)
    sizes = sizes_of(plan.notes["latency"], find_sites(make("llama"), kinds))
    assert plan.notes["latency"]["predicted"] <= dense - 3.3 + 1e-9
    for cut in plan.edits:
        row = sizes._seconds[cut.site]
        assert len(cut.keep) == cut.units or row[len(cut.keep) + 1 :].min() > row[len(cut.keep)]


def sizes_of(notes, sites):
    table = LatencyTable.of(notes)
    return TimedSizes(size_target_of({"latency": "1s", **SHAPE}), sites, table)


def test_blocks_can_be_timed_too(clock):
    dense = steps_of_ten(make("llama"))
    plan = planned(f"{dense - 1}s", kinds=["block"], criterion="depth")
    assert widths_of(plan) == [1]
    assert plan.notes["latency"]["predicted"] == pytest.approx(dense - 4.5)


def test_steps_of_an_iteration_go_the_same_part_of_the_way(clock):
    dense = steps_of_ten(make("llama"))
    plan = planned(f"{dense - 4}s", schedule="iterative", steps=2)
    assert widths_of(plan) == [20, 20]


def site(units, kind="mlp", groups=1):
    return Site("a", kind, units, block=0, groups=groups)


def test_a_width_just_above_a_step_is_never_taken():
    """Odd widths that are slower than the next multiple become that multiple."""
    table = LatencyTable(
        9.0, ((("a",), ((0, 1.0), (64, 2.0), (65, 4.0), (128, 3.0), (129, 5.0), (192, 4.0))),)
    )
    sizes = TimedSizes(size_target_of({"latency": "5s", **SHAPE}), [site(192)], table)
    found = {
        width: sizes.widened([site(192)], {"a": width}, Uniform())["a"] for width in (40, 64, 65, 127, 129)
    }
    assert found == {40: 40, 64: 64, 65: 128, 127: 128, 129: 192}
    assert sizes.widened([replace(site(100), before=192)], {"a": 65}, Uniform()) == {"a": 100}
    rounded = sizes.widened([site(192)], {"a": 96}, Uniform(round_to=32))
    assert rounded == {"a": 128}


def test_rows_have_multiples_of_tiles_and_the_unit_after_each():
    assert widths_to_time(site(1536), 1)[0] == [*range(0, 1537, 192)]
    assert widths_to_time(site(1536), 1)[1] == [*range(1, 1346, 192)]
    whole, odd = widths_to_time(site(1000), 1)
    assert whole == [0, 64, 192, 320, 448, 576, 704, 832, 960, 1000]
    assert odd == [width + 1 for width in whole if width < 1000]
    assert widths_to_time(site(1536), 128) == ([0, 128, 384, 512, 768, 896, 1152, 1280, 1536], [])
    assert widths_to_time(site(3, "attention"), 1) == ([1, 2, 3], [])
    assert widths_to_time(site(8, "query_heads", 2), 2) == ([2, 4, 6, 8], [])


def test_noise_is_smoothed_and_slow_odd_widths_stay():
    found = {0: 1.0, 64: 3.0, 128: 2.0, 192: 4.0, 1: 1.2, 65: 2.0, 129: 9.0}
    assert smoothed(found, [1, 65, 129]) == {0: 1.0, 1: 1.2, 64: 2.5, 65: 2.5, 128: 2.5, 129: 9.0, 192: 4.0}


def test_sites_of_equal_shape_share_a_row(clock):
    model = make("llama")
    sites = find_sites(model, ["mlp", "attention"])
    table = measure_table(model, sites, 2, 16, dict.fromkeys([one.name for one in sites], 1))
    assert [names for names, _ in table.rows] == [
        tuple(one.name for one in sites if one.kind == kind) for kind in ("mlp", "attention")
    ]
    row = dict(table.points("model.layers.1.mlp").tolist())
    assert row[40] - row[30] == pytest.approx(1)
    assert row[40] - row[0] == pytest.approx(4)


def test_copies_share_the_weights_that_are_not_cut(clock):
    dense = make("llama")
    before = {name: weight.data_ptr() for name, weight in dense.named_parameters()}
    measure_table(dense, find_sites(dense), 1, 8, dict.fromkeys([one.name for one in find_sites(dense)], 1))
    assert {name: weight.data_ptr() for name, weight in dense.named_parameters()} == before
    pointers = {weight.data_ptr() for weight in clock[-2].parameters() if weight.numel()}
    assert before["model.embed_tokens.weight"] in pointers


def test_a_table_is_measured_once(clock, tmp_path):
    model = make("llama")
    subject = Subject(model, find_sites(model), Cache(tmp_path))
    steps = {one.name: 1 for one in subject.sites}
    first = table_once(subject, 1, 8, steps)
    count = len(clock)
    assert table_once(subject, 1, 8, steps) == first
    assert len(clock) == count
    table_once(subject, 1, 9, steps)
    assert len(clock) == 2 * count
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    table_once(subject, 1, 8, steps)
    torch.set_num_threads(threads)
    assert len(clock) == 3 * count


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "opt", "gemma2"])
def test_real_passes_of_every_family_can_be_timed(family, monkeypatch):
    """Each pass runs; the clock counts parameters, since models so small take no less time."""

    def seconds(self):
        self.run()
        return count_weights(self.model)

    monkeypatch.setattr(latency_table.Pass, "seconds", property(seconds))
    monkeypatch.setattr(latency_table, "ROUNDS", 1)
    model = make(family)
    parts = {"criterion": "magnitude", "allocator": "uniform", "kinds": ["mlp", "attention"]}
    plan = cfsp.plan(model, batches(), size_target={"latency": 0.8, **SHAPE}, **parts)
    assert 0.7 < plan.notes["latency"]["predicted"] / plan.notes["latency"]["dense"] <= 0.8


def test_an_encoder_decoder_is_timed_as_a_whole(monkeypatch):
    def seconds(self):
        self.run()
        return count_weights(self.model)

    monkeypatch.setattr(latency_table.Pass, "seconds", property(seconds))
    monkeypatch.setattr(latency_table, "ROUNDS", 1)
    model, kinds = make_pair("t5"), ["mlp", "attention", "cross_attention"]
    sites = find_sites(model, kinds)
    table = measure_table(model, sites, 1, 8, {one.name: 1 for one in sites})
    assert {name for names, _ in table.rows for name in names} == {one.name for one in sites}


def test_seconds_are_a_budget_of_error_curves(clock):
    """A quarter of what the units take on average goes, by the table, and at most a unit's seconds more."""
    allocator, row = (
        ErrorCurves(budget="latency"),
        ([1, 10, 15, 20, 25, 30, 35, 40], [1, 1, 2, 2, 3, 3, 4, 4]),
    )
    plan = cfsp.plan(make("llama"), batches(), criterion="magnitude", allocator=allocator, sparsity=0.25)
    saved = sum(4 - np.interp(width, *row) for width in widths_of(plan))
    asked = 0.25 * 2 * 40 * 3 / 39
    assert asked - 1e-9 <= saved < asked + 0.2


def test_a_ladder_goes_by_the_seconds():
    curve = torch.stack([torch.arange(13.0), torch.linspace(12, 0, 13) ** 2], dim=1).double()
    stat = {
        "error_curve": curve,
        "width_seconds": torch.tensor([[1, 1.0], [6, 1.0], [7, 3.0], [12, 3.0]]).double(),
    }
    one = replace(site(12), whole=None)
    allocator = ErrorCurves(budget="latency")
    rungs = allocator.ladder(one, stat, 1.0)
    assert [[*rung.widths.values()] for rung in rungs] == [[12], [6]]
    assert rungs[1].spared == pytest.approx(2)
    assert rungs[1].added == pytest.approx(36)
    assert allocator.prices([one], {"a": stat}, {"a": 5})["a"] == pytest.approx(2 / 11)
    kept = allocator.allocate([one], {}, {"a": stat}, Budget(45, 60, {"a": 5}))
    assert kept == {"a": 6}


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (0.1, {}, r"target.latency=0.1: with sites=\[mlp\], .* at least 0.4 stays"),
        ("9999s", {}, r"target.latency=9999000ms: the dense model has no more than 10000ms; expected less"),
        ("1ms", {}, r"target.latency=1ms: .* expected from 4000ms to 10000ms, or more sites"),
        (1, {}, "target.latency=1: expected a share of the dense model's seconds, below 1, or a number with"),
        ("120 minutes", {}, "target.latency=120 minutes: expected a share"),
        (0.8, {"kinds": ["hidden"]}, r"target.latency=0.8: what each site saves is added up; expected sites"),
        (0.8, {"kinds": ["attention", "query_heads"]}, "expected sites that share no weights"),
        (0.8, {"allocator": ErrorCurves(rounds=2)}, "target.latency=0.8 with allocator.rounds"),
    ],
)
def test_refusals_say_what_can_be_reached(clock, target, options, message):
    with pytest.raises(ValueError, match=message) as error:
        planned(target, **options)
    assert "\n" not in str(error.value)


def test_what_is_said_to_be_the_least_can_be_reached(clock):
    assert widths_of(planned(0.4)) == [10, 10]


def test_inputs_too_short_to_tell_are_refused(monkeypatch):
    monkeypatch.setattr(latency_table.Pass, "seconds", property(lambda self: 1.0))
    with pytest.raises(ValueError, match="no less time on 2 x 16 tokens; expected more or longer samples"):
        planned(0.8)
    with pytest.raises(ValueError, match="no less time on"):
        cfsp.plan(make("llama"), batches(), allocator=ErrorCurves(budget="latency"))


def test_a_run_states_what_was_measured_beside_the_table(cfsp, monkeypatch):
    monkeypatch.setattr(latency_table.Pass, "seconds", property(lambda self: count_weights(self.model)))
    monkeypatch.setattr(latency_table, "ROUNDS", 1)
    words = ["target.latency=0.98", "target.batch=2", "target.tokens=16", "evaluation=[]"]
    code, out, err = cfsp(*words)
    assert code == 0, err
    record = Record.load(out.splitlines()[-1])
    target = record.target
    assert target["asked"] == 0.98
    assert target["table"]["predicted"] <= 0.98 * target["table"]["dense"]
    assert target["reached"] == pytest.approx(target["table"]["predicted"])
    assert target["dense"] == target["table"]["dense"]
    assert np.isclose(record.notes["latency"]["predicted"], target["reached"])
    assert "asked 98% of the seconds" in " ".join(out.split())
