"""Probes: measure the whole model's loss at some widths of one site.

The run's criterion and compensation cut one site to a few widths; the other sites stay whole. The loss
compares the model's output with the dense model's. A pass begins at the site's block, from stored hidden
states.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cfsp.bars import bar
from cfsp.model.sites import Site
from cfsp.passes.walk import Walk, walking
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut
from cfsp.plans.subject import Subject
from cfsp.schedules.dense_answers import DenseAnswers, dense_answers, divergence
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.prices import prices_of
from cfsp.statistics.base import Stats
from cfsp.statistics.cached import collect_of_dense, origin_of_statistics
from cfsp.statistics.collect import collect
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest
from cfsp.storage.tensors import read_tensors, write_tensors


def add_probes(
    stats: Stats,
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    place: str = "memory",
) -> None:
    """Add to the statistics what the allocator asks of the dense model, if it probes: errors, and prices.

    stats: what is known so far. place: where to store hidden states (`cfsp.passes.hidden_states`).
    """
    if method.allocator.probes is not None:
        found = probe_once(subject, batches, method, stats, place)
        priced = prices_of(subject, batches, method.allocator)
        for site in stats:
            stats[site] |= found.get(site, {}) | priced.get(site, {})


def probe_once(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    known: Stats,
    place: str = "memory",
) -> Stats:
    """Return the result of `probe`, from the cache if these parts were probed on this model and text before.

    So a sweep over sparsities probes once. Results of parts whose code is in no file are never cached.
    """
    parts, probes, cache = (method.criterion, method.compensation), method.allocator.probes, subject.cache
    code = code_of(probe, *map(type, parts))
    if cache.folder is None or probes is None or code is None:
        return probe(subject, batches, method, known, place)
    tried = {
        "probes": asdict(replace(probes, cost="")),
        "parts": [[type(part).__qualname__, repr(vars(part))] for part in parts],
        "code": code,
    }
    folder = f"statistics/{digest([origin_of_statistics(subject, subject.sites, batches), tried])}"
    with cache.alone(folder):
        kept = cache.get(f"{folder}/probes.safetensors", read_tensors)
        if kept is None:
            made = probe(subject, batches, method, known, place)
            kept = {f"{site}/{name}": value for site, stat in made.items() for name, value in stat.items()}
            cache.describe(folder)
            cache.put(f"{folder}/probes.safetensors", partial(write_tensors, kept))
    stats: Stats = {site.name: {} for site in subject.sites}
    for key, value in kept.items():
        site, name = key.rsplit("/", 1)
        stats[site][name] = value
    return stats


@torch.no_grad()
def probe(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    known: Stats,
    place: str = "memory",
) -> Stats:
    """Measure the whole model's loss at some widths of each site.

    -> site name -> `error_probes` [points, 2]: units kept (ascending, the last all), and KL(dense || model)
    per token in nats; `error_curve` [widths, 2]: the same at every width. Where blocks may go, the first site
    of each has `block_error` []: that of the model without it.

    known: the dense model's statistics measured so far. place: where to store the hidden states and the dense
    model's outputs (`cfsp.passes.hidden_states`).

    A compensation is fitted on the other batches (`held_out`), because a fit hides its error on its own text.

    Cost: `len(sites) * len(shares)` passes over the measured batches, each from the site's block on, plus
    one pass. With a compensation, or if statistics are missing, that pass reads all batches, and each site
    takes another pass through its block (for missing gradients of weights: through the model, and back).
    """
    model, sites, probes = subject.model, subject.sites, method.allocator.probes
    if probes is None:
        raise ValueError(
            f"allocator {type(method.allocator).__name__} probes nothing; expected one that does"
        )
    count = held_out(batches, method, probes.batches)
    lacking = frozenset().union(*(missing(method, known[site.name]) for site in sites))
    batches = batches if lacking else batches[:count]  # nothing needs the others
    measured = collect_of_dense(subject, sites, fitted(batches, count), lacking)
    known = {name: measured[name] | stat for name, stat in known.items()}
    stats: Stats = {}
    with walking(model, batches, place) as walk:
        dense = dense_answers(model, batches[:count], probes.compared, walk.store)
        for block in bar(range(len(walk.blocks)), "probe widths", "block"):
            stats |= probe_block(walk, [one for one in sites if one.block == block], method, known, dense)
            if block < len(walk.blocks) - 1:
                walk.advance()
    return stats


def probe_block(
    walk: Walk, sites: Sequence[Site], method: Method, known: Stats, dense: Sequence[DenseAnswers]
) -> Stats:
    """Return what `probe` measures at the sites of the walk's block."""
    probes = method.allocator.probes
    stats = {site.name: probe_site(walk, site, method, known[site.name], dense) for site in sites}
    if probes is not None and probes.blocks and sites:
        stats[sites[0].name]["block_error"] = error_without(walk, sites, dense)
    return stats


def probe_site(
    walk: Walk, site: Site, method: Method, known: Mapping[str, Tensor], dense: Sequence[DenseAnswers]
) -> dict[str, Tensor]:
    """Return `error_probes` [points, 2] and `error_curve` [widths, 2] of one site in the walk's block.

    known: the site's statistics. dense: the dense model's answers to the first batches.
    """
    probes = method.allocator.probes
    assert probes is not None, "the allocator wants them"
    score, stat = judged(walk, site, method, known, len(dense))
    points = {}
    for width in widths(site, probes.shares, probes.empty):
        cut = cut_alone(walk, site, width, score, stat, method)
        with PartlyCut(walk.model, [site], [cut]).gates():
            points[width] = divergence(walk, walk.batches[: len(dense)], dense)
    points[site.units] = 0.0
    return {
        "error_probes": torch.tensor([*points.items()], dtype=torch.float64),
        "error_curve": curve(points, score, site.groups),
    }


def error_without(walk: Walk, sites: Sequence[Site], dense: Sequence[DenseAnswers]) -> Tensor:
    """Return KL(dense || model without the walk's block) per token, float64 []. sites: all of the block"""
    state = PartlyCut(walk.model, sites)
    with PartlyCut(walk.model, sites, [state.cut(site, ()) for site in sites]).gates():
        error = divergence(walk, walk.batches[: len(dense)], dense)
    return torch.tensor(error, dtype=torch.float64)


def held_out(batches: Sequence[Mapping[str, Tensor]], method: Method, count: int) -> int:
    """Return how many of the first batches are measured, and say if a fit to others is impossible."""
    if method.compensation.needs and len(batches) < 2:
        print(
            "cfsp: the error curves are measured on the batch that the weights are fitted on, because there "
            "is no other; more calibration.samples, or a smaller calibration.batch_size, keep them apart",
            file=sys.stderr,
        )
    return count_measured(len(batches), method, count)


def count_measured(total: int, method: Method, count: int) -> int:
    """Return how many of the first batches are measured; compensations are fitted on the others."""
    return max(1, min(count, total // 2)) if method.compensation.needs else min(count, total)


def fitted(batches: Sequence[Mapping[str, Tensor]], measured: int) -> Sequence[Mapping[str, Tensor]]:
    """Return the batches that statistics are of: those that are not measured; all, if there are none.

    Each batch: input_ids and attention_mask [rows, tokens].
    """
    return batches[measured:] or batches


def missing(method: Method, known: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the statistics to measure: those not known, and all that a compensation is fitted to."""
    return (method.criterion.needs - known.keys()) | method.compensation.needs


def judged(
    walk: Walk,
    site: Site,
    method: Method,
    known: Mapping[str, Tensor],
    measured: int,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the scores of a site's units in the dense model [units], and the site's statistics.

    measured: the number of the first batches that are kept out of the fit; all, if there is no other.
    """
    needs, stat = missing(method, known), known
    if needs:
        own = fitted(walk.batches, measured)
        with walk.resumed(len(walk.batches) - len(own)):
            found = collect(walk.model, [site], own, needs, site.blocks[0])
        stat = {**known, **found[site.name]}
    return method.criterion.score(PartlyCut(walk.model, [site]).view(site), stat), stat


def cut_alone(
    walk: Walk,
    site: Site,
    count: int,
    score: Tensor,
    stat: Mapping[str, Tensor],
    method: Method,
) -> Cut:
    """Cut one site to its best units. They are not refined; only the final width is worth that cost."""
    state, keep = PartlyCut(walk.model, [site]), best_units(score, count, site.groups)
    return state.cut(site, keep, **method.compensation.compensate(state.view(site), stat, keep))


def curve(points: Mapping[int, float], score: Tensor, groups: int) -> Tensor:
    """Return the loss at every width of a site, in ascending order, from that at a few. [widths, 2]

    Between two measured widths, it is linear in the sum of the removed units' scores, each less the lowest
    score (for greedy OBS: in its squared error). Below the narrowest measured width it goes on as that
    sum to the power that the two narrowest have, or in a line through them, whichever is more: a line alone
    would let whole sites go that nobody measured. With one measured width it is linear in that sum
    everywhere: the site's own error times one measured slope.
    """
    if len(points) == 1:
        return torch.tensor([*points.items()], dtype=torch.float64)
    run = len(score) // groups
    added = (score - score.min()).double().cpu().view(groups, run).sort(dim=1).values.sum(0)
    added += 1e-6 * added.mean() + torch.finfo(added.dtype).tiny  # sums increase strictly
    gone = np.concatenate([[0.0], added.cumsum(0).numpy()])[::-1]  # index: units kept in each group
    steps = [width // groups for width in points]
    losses = [*points.values()]
    found = np.interp(gone, gone[steps][::-1], losses[::-1])
    below = np.arange(steps[0])
    if len(points) == 2:
        found[below] = losses[0] * gone[below] / gone[steps[0]]
    else:
        slope = (losses[0] - losses[1]) / (steps[1] - steps[0])
        found[below] = losses[0] + slope * (steps[0] - below)
        if 0 < losses[1] < losses[0]:
            ratio = gone[below] / gone[steps[0]]
            power = np.log(losses[0] / losses[1]) / np.log(gone[steps[0]] / gone[steps[1]])
            found[below] = np.maximum(found[below], losses[0] * ratio**power)
    return torch.stack([torch.arange(run + 1) * groups, torch.from_numpy(found)], dim=1)


def warn_of_unmeasured(stats: Stats, widths: Mapping[str, int]) -> None:
    """Say on stderr if sites become much narrower than any width that was measured."""
    least = {name: stat["error_probes"][0, 0] for name, stat in stats.items() if "error_probes" in stat}
    far = [name for name, narrowest in least.items() if widths.get(name, narrowest) < 0.75 * narrowest]
    if far:
        print(
            f"cfsp: error_curves: {len(far)} of {len(least)} sites ({far[0]} first) get widths far below the "
            "narrowest that was measured, where the curve is a guess; expected smaller allocator.shares",
            file=sys.stderr,
        )


def widths(site: Site, shares: Sequence[float], empty: bool) -> list[int]:
    """Return the distinct widths at these fractions, in ascending order, without all units.

    empty: begin with 0, if the site can lose all of its units.
    """
    step = site.groups
    most = site.units // step - 1
    found = {min(max(1, round(share * site.units / step)), most) * step for share in shares} - {0}
    return sorted(found | ({0} if empty and site.may_go else set()))
