"""Decisions: from scores to widths, units and cuts, in a model that may be partly cut already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cfsp.allocators.base import Allocator, Budget
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.model.sites import Site
from cfsp.model.views import unit_cost
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.base import Stats


def check_kinds(criterion: Criterion, sites: Sequence[Site]) -> None:
    """Raise ValueError if the criterion cannot score one of the sites."""
    for site in sites:
        if site.kind not in criterion.kinds:
            raise ValueError(
                f"criterion {type(criterion).__name__} cannot score {site.kind!r} sites; expected only "
                f"{', '.join(sorted(criterion.kinds))}"
            )


def check_compensation(
    compensation: Compensation, sites: Sequence[Site], targets: Sequence[str], schedule: str
) -> None:
    """Raise ValueError if it needs a target that the schedule does not give, or cannot refit a site.

    targets: those that the schedule gives. schedule: its name.
    """
    name = type(compensation).__name__
    if compensation.target not in targets:
        raise ValueError(
            f"compensation target={compensation.target}: schedule {schedule} gives only "
            f"{', '.join(targets)}; expected schedule=blockwise"
        )
    made_up_for = compensation.kinds or {site.kind for site in sites}
    if not {site.kind for site in sites} <= made_up_for:
        raise ValueError(
            f"compensation {name} makes up for units of {', '.join(sorted(made_up_for))} alone; expected "
            f"sites=[{','.join(sorted(made_up_for))}]"
        )
    consumers = [site.consumers[0].module for site in sites if site.consumers]
    if compensation.rewrites and len(set(consumers)) < len(sites):
        raise ValueError(
            f"compensation {name} fits each consumer to one site; expected sites that share none (attention "
            "or query_heads, mlp)"
        )


def score_sites(
    state: PartlyCut, sites: Sequence[Site], stats: Stats, criterion: Criterion
) -> dict[str, Tensor]:
    """Return the scores of the units that are left. site name -> [units]

    Raises ValueError if a score is NaN or infinite.
    """
    check_kinds(criterion, sites)
    scores = {}
    for site in sites:
        scores[site.name] = criterion.score(state.view(site), stats[site.name])
        if not scores[site.name].isfinite().all():
            raise ValueError(f"{site.name}: a score is NaN or infinite; expected finite weights")
    return scores


def allocate(
    state: PartlyCut,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    stats: Stats,
    allocator: Allocator,
    removed: int,
) -> dict[str, int]:
    """Return widths that remove at least `removed` more parameters, and as few beyond that as possible."""
    if removed <= 0:
        return {site.name: site.units for site in sites}
    cost = {site.name: state.cost(site) for site in sites}
    if not overlap(sites):
        total = sum(site.units * cost[site.name] for site in sites)
        return allocator.allocate(sites, scores, stats, Budget.of(sites, cost, total - removed))
    # If sites share weights or blocks differ, the costs do not add up: search for the budget that fits.
    before = state.parameters()
    widths = widest(
        state,
        sites,
        scores,
        stats,
        allocator,
        lambda keep: before - state.after(keep).parameters() >= removed,
    )
    if widths is None:
        raise ValueError(f"the sites cannot lose {removed:,} parameters; expected a lower sparsity")
    return widths


def widest(
    state: PartlyCut,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    stats: Stats,
    allocator: Allocator,
    fits: Callable[[Mapping[str, Sequence[int]]], bool],
    guess: float | None = None,
    widened: Callable[[Mapping[str, int]], dict[str, int]] = dict,
) -> dict[str, int] | None:
    """Return the allocator's widths for a budget that fits where one parameter more does not.

    None if not even the least budget fits. fits: whether the model is small enough with these units.
    guess: where the budget lies between the least and the whole. From there the steps double until they pass
    it, then the range is halved; without a guess it is halved from the start. widened: gives sites what
    costs nothing.
    """
    cost = {site.name: state.cost(site) for site in sites}
    low = least_budget(sites, cost, stats, allocator)
    high = sum(site.units * cost[site.name] for site in sites)

    def tried(keep: int) -> dict[str, int] | None:
        widths = widened(allocator.allocate(sites, scores, stats, Budget.of(sites, cost, keep)))
        return widths if fits(choose(sites, scores, widths, allocator)) else None

    widths = tried(low)
    middle, step = (low, high) if guess is None else (low + int(guess * (high - low)), max(cost.values()))
    while widths is not None and high - low > 1:
        middle = middle if low < middle < high else (low + high) // 2
        wider = tried(middle)
        if wider is None:
            high, middle = middle, middle - step
        else:
            low, middle, widths = middle, middle + step, wider
        step *= 2
    return widths


def least_budget(sites: Sequence[Site], cost: Mapping[str, int], stats: Stats, allocator: Allocator) -> int:
    """Return the fewest parameters for which the allocator finds widths.

    One that counts MACs or seconds reads a budget as a share, and its least share is another than that of
    the parameters.
    """
    least, prices = allocator.least(sites, cost), allocator.prices(sites, stats, cost)
    if prices == cost:
        return round(least)
    units = {site.name: site.units for site in sites}
    share = allocator.least(sites, prices) / sum(units[name] * prices[name] for name in units)
    return max(round(least), math.ceil(share * sum(units[name] * cost[name] for name in units)))


def budget_of(subject: Subject, widths: Mapping[str, int]) -> Budget:
    """Return the budget that these widths use up. widths: site name -> units kept."""
    cost = {site.name: unit_cost(subject.model, site) for site in subject.sites}
    return Budget.of(subject.sites, cost, sum(widths[name] * cost[name] for name in cost))


def overlap(sites: Sequence[Site]) -> bool:
    """Return whether the cost of a unit depends on which other units are removed."""
    modules = [{member.module for member in site.members} for site in sites]
    shared = sum(map(len, modules)) > len(set().union(*modules))
    return shared or any(site.units_are_blocks for site in sites)


def choose(
    sites: Sequence[Site], scores: Mapping[str, Tensor], widths: Mapping[str, int], allocator: Allocator
) -> dict[str, tuple[int, ...]]:
    """Return each site's units with the highest scores, as many as its width. Protected units come first."""
    chosen = {}
    for site in sites:
        score = scores[site.name].clone()
        for unit in allocator.protected_units(site):
            score[unit] = torch.inf
        chosen[site.name] = best_units(score, widths[site.name], site.groups)
    return chosen


def make_cuts(
    state: PartlyCut,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    stats: Stats,
    method: Method,
) -> list[Cut]:
    """Cut every site to its best units. The compensation makes up for the removed ones."""
    keep = choose(sites, scores, widths, method.allocator)
    return [make_cut(state, site, keep[site.name], stats[site.name], method) for site in sites]


def make_cuts_of_each(
    state: PartlyCut,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    widths: Mapping[str, Sequence[int]],
    stats: Stats,
    method: Method,
) -> dict[str, list[Cut]]:
    """Cut every site to each of its widths. site name -> a cut per width"""
    return {
        site.name: [
            make_cuts(state, [site], scores, {site.name: width}, stats, method)[0]
            for width in widths[site.name]
        ]
        for site in sites
    }


def make_cut(
    state: PartlyCut,
    site: Site,
    keep: Sequence[int],
    stat: Mapping[str, Tensor],
    method: Method,
) -> Cut:
    """Cut one site to these units after the criterion has refined the choice. Compensate for the others."""
    if len(keep) == site.units:
        return state.cut(site, keep)
    view = state.view(site)
    keep = method.criterion.refine(view, stat, keep)
    return state.cut(site, keep, **method.compensation.compensate(view, stat, keep))
