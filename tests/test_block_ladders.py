"""Ladders of blocks: a whole block competes with widths, and the budget is met."""

import pytest
import torch
from families import LLAMA
from transformers import LlamaConfig, LlamaForCausalLM

from cfsp.allocators.base import Budget
from cfsp.allocators.error_curves import ErrorCurves
from cfsp.allocators.ladders import Rung, descend_ladders, join_ladders, widths_at
from cfsp.model.find_sites import find_sites
from cfsp.model.views import unit_cost
from cfsp.schedules.dropped_blocks import empty_blocks


def ladder(name, *steps):
    """steps: (width, spared, added)"""
    return [Rung({name: 10}, 0.0, 0.0), *(Rung({name: width}, *step) for width, *step in steps)]


def test_a_block_has_one_ladder_whose_last_rung_takes_all_of_it():
    mlp = ladder("mlp", (6, 4.0, 1.0), (3, 3.0, 1.5), (0, 3.0, 6.0))  # 0.25, 0.5, 2 for what they save
    heads = ladder("heads", (5, 5.0, 2.0), (0, 5.0, 5.0))  # 0.4, 1
    dear = join_ladders([mlp, heads], whole=16.5)
    assert [rung.widths for rung in dear[1:-1]] == [{"mlp": 6}, {"heads": 5}, {"mlp": 3}, {"heads": 0}]
    assert (dear[-1].widths, dear[-1].spared) == ({"mlp": 0, "heads": 0}, 3.0)
    assert dear[-1].added == pytest.approx(16.5 - 9.5)  # as measured, not 15.5 as the sites alone add up to
    cheap = join_ladders([mlp, heads], whole=6.0)
    assert [rung.widths for rung in cheap[1:-1]] == [{"mlp": 6}]
    assert (cheap[-1].spared, cheap[-1].added) == (16.0, 5.0)
    free = join_ladders([mlp, heads], whole=0.0)
    assert [(rung.spared, rung.added) for rung in free[1:]] == [(20.0, 0.0)]
    for one in (dear, cheap, free):
        assert sum(rung.spared for rung in one) == 20.0
        assert widths_at(one, len(one) - 1) == {"mlp": 0, "heads": 0}


def test_a_whole_block_competes_with_widths():
    mlp, heads = ladder("mlp", (0, 10.0, 9.0)), ladder("heads", (0, 10.0, 9.0))
    other = ladder("other", *((10 - step, 2.0, 0.2) for step in range(1, 11)))
    for whole, gone in ((1.0, {"block": 1}), (5.0, {"other": 10})):
        found, _ = descend_ladders({"block": join_ladders([mlp, heads], whole), "other": other}, 20.0)
        assert {name: rung for name, rung in found.items() if rung} == gone


@pytest.fixture(scope="module")
def priced():
    """The sites of a model of four equal blocks, the price of a unit by site, and that of all."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_hidden_layers": 4}))
    sites = find_sites(model, ["mlp", "attention"])
    cost = {site.name: unit_cost(model, site) for site in sites}
    return sites, cost, sum(site.units * cost[site.name] for site in sites)


def linear(sites, whole):
    """Statistics by which every site costs as much as any other, unit by unit. whole: block -> its error"""
    stats = {}
    for site in sites:
        widths = torch.arange(site.units + 1, dtype=torch.float64)
        stats[site.name] = {
            "error_curve": torch.stack([widths, 1 - widths / site.units], dim=1),
            "block_error": torch.tensor(whole[site.block]),
        }
    return stats


@pytest.mark.parametrize("whole", [[0.0] * 4, [0.5] * 4, [1.9] * 4, [3.0] * 4, [0.1, 2.5, 1.0, 2.0]])
@pytest.mark.parametrize("protect", [[], [0, 1], [1, 2, 3]])
def test_the_budget_is_met_to_one_unit_where_blocks_are_cheap(whole, protect, priced):
    sites, cost, total = priced
    for share in (0.01, 0.1, 0.24, 0.25, 0.3, 0.375, 0.6, 0.9):
        if share > 1 - len(protect) / 4:
            continue
        errors = {}
        for drop in (False, True):
            allocator = ErrorCurves(allow_empty=True, drop_blocks=drop, protect=protect)
            due = round(share * total)
            widths = allocator.allocate(sites, {}, linear(sites, whole), Budget.of(sites, cost, total - due))
            gone = sum((site.units - widths[site.name]) * cost[site.name] for site in sites)
            assert due <= gone < due + min(cost.values())
            assert all(widths[site.name] == site.units for site in sites if site.block in protect)
            errors[drop] = error_of(widths, sites, whole)
        assert errors[True] <= errors[False] + 1e-9


def error_of(widths, sites, whole):
    """The error of these widths, where the curves are linear."""
    gone = empty_blocks(widths, sites)
    left = (1 - widths[site.name] / site.units for site in sites if site.block not in gone)
    return sum(left) + sum(whole[block] for block in gone)


def test_a_cheap_block_goes_and_the_rest_is_saved_unit_by_unit(priced):
    """Of two blocks that cost 0.5 each, 0.375 of four blocks takes one; the other would save too much."""
    sites, cost, total = priced
    budget = Budget.of(sites, cost, total - round(0.375 * total))
    stats = linear(sites, [2.0, 0.5, 0.5, 2.0])
    widths = ErrorCurves(allow_empty=True, drop_blocks=True).allocate(sites, {}, stats, budget)
    assert len(empty_blocks(widths, sites)) == 1
    assert sum(0 < widths[site.name] < site.units for site in sites) > 0
