"""Probes: what the whole model loses with the width of one site, and what a unit costs.

Each site is cut to a few widths as the run's own criterion and compensation would cut it, the others being
whole, and the model's answers are compared with the dense model's. A pass begins at
the site's block, from hidden states that are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cfsp.allocators.base import Probes
from cfsp.bars import bar
from cfsp.model.pass_cost import macs, seconds_of
from cfsp.model.sites import Site
from cfsp.passes.modes import evaluating
from cfsp.passes.walk import Walk, walking
from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.base import Stats
from cfsp.statistics.cached import origin_of_statistics
from cfsp.statistics.collect import collect
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest
from cfsp.storage.tensors import read_tensors, write_tensors

ROUNDS = 9
"""Interleaved pairs of passes that a latency is the median of."""


def probe_once(
    subject: Subject,
    batches: Sequence[Mapping[str, Tensor]],
    method: Method,
    known: Stats,
    place: str = "memory",
) -> Stats:
    """What `probe` returns, from the cache if these parts were tried on this model and text before.

    A sweep over sparsities so probes once. Latencies are of this hour and this machine, and never kept;
    nor is what parts do whose code is in no file.
    """
    parts, probes, cache = (method.criterion, method.compensation), method.allocator.probes, subject.cache
    code = code_of(probe, *map(type, parts))
    if cache.folder is None or probes is None or probes.cost == "latency" or code is None:
        return probe(subject, batches, method, known, place)
    tried = {
        "probes": asdict(probes),
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
    """What the whole model loses with each site, and what its units cost.

    -> site name -> `error_probes` [points, 2]: units kept (rising, the last all), and KL(dense || model) per
    token in nats; `error_curve` [widths, 2]: the same at every width; and `unit_cost`, in MACs or seconds of
    a pass, if they are wanted.

    known: statistics of the dense model that are there already. place: of what is kept of all batches, the
    hidden states and the dense model's answers (`cfsp.passes.hidden_states`).

    Cost: `len(sites) * len(shares)` passes over `probes.batches` batches, each from the site's block on, and
    one more. Where statistics are not known, that one is over all batches, and another goes through its block
    for each site (of gradients: through the whole model and back).
    """
    model, sites, probes = subject.model, subject.sites, method.allocator.probes
    if probes is None:
        raise ValueError(
            f"allocator {type(method.allocator).__name__} probes nothing; expected one that does"
        )
    chosen, needs = batches[: probes.batches], judging(method)
    if all(needs <= known[site.name].keys() for site in sites):
        batches = chosen  # what more there is has been read
    stats: Stats = {}
    with walking(model, batches, place) as walk:
        dense = [walk.store.keep(log_probabilities(model, one), f"dense.{n}") for n, one in enumerate(chosen)]
        for block in bar(range(len(walk.blocks)), "probe widths", "block"):
            for site in (site for site in sites if site.block == block):
                stats[site.name] = probe_site(walk, site, method, known[site.name], dense)
            if block < len(walk.blocks) - 1:
                walk.advance()
    for name, price in unit_prices(subject, chosen[0], probes).items():
        stats[name]["unit_cost"] = torch.tensor(price, dtype=torch.float64)
    return stats


def probe_site(
    walk: Walk, site: Site, method: Method, known: Mapping[str, Tensor], dense: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return `error_probes` [points, 2] and `error_curve` [widths, 2] of one site in the walk's block.

    known: the site's statistics. dense: what the dense model answers to the first batches.
    """
    probes = method.allocator.probes
    assert probes is not None, "the allocator wants them"
    score, stat = judged(walk, site, method, known)
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


def unit_prices(subject: Subject, batch: Mapping[str, Tensor], probes: Probes) -> dict[str, float]:
    """Site name -> what a unit costs, alike for all sites of a kind; nothing where parameters count."""
    prices: dict[str, float] = {}
    for kind in dict.fromkeys(site.kind for site in subject.sites) if probes.cost != "parameters" else ():
        alike = [site for site in subject.sites if site.kind == kind]
        with evaluating(subject.model):
            price = unit_price(subject.model, alike, batch, probes)
        prices |= dict.fromkeys((site.name for site in alike), price)
    return prices


def judging(method: Method) -> frozenset[str]:
    """Names of the statistics that probes read: those of criterion and compensation."""
    return method.criterion.needs | method.compensation.needs


def judged(
    walk: Walk,
    site: Site,
    method: Method,
    known: Mapping[str, Tensor],
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Scores of a site's units in the dense model [units], and its statistics."""
    needs, stat = judging(method), known
    if not needs <= known.keys():
        with walk.resumed():
            stat = collect(walk.model, [site], walk.batches, needs, site.blocks[0])[site.name]
    return method.criterion.score(PartlyCut(walk.model, [site]).view(site), stat), stat


def cut_alone(
    walk: Walk,
    site: Site,
    count: int,
    score: Tensor,
    stat: Mapping[str, Tensor],
    method: Method,
) -> Cut:
    """One site cut to its best units, which are not refined: that is for the width that will count."""
    state, keep = PartlyCut(walk.model, [site]), best_units(score, count, site.groups)
    return state.cut(site, keep, **method.compensation.compensate(state.view(site), stat, keep))


def curve(points: Mapping[int, float], score: Tensor, groups: int) -> Tensor:
    """The loss at every width that a site can have, from that at a few of them, rising. [widths, 2]

    Between two of them it rises as the scores of the units that go add up, above the lowest of them (by
    greedy OBS: as its squared error does); below the narrowest in a straight line, as steep as between the
    last two.
    """
    if len(points) == 1:
        return torch.tensor([*points.items()], dtype=torch.float64)
    run = len(score) // groups
    added = (score - score.min()).double().cpu().view(groups, run).sort(dim=1).values.sum(0)
    added += 1e-6 * added.mean() + torch.finfo(added.dtype).tiny  # strictly rising
    gone = np.concatenate([[0.0], added.cumsum(0).numpy()])[::-1]  # by units of each group that stay
    steps = [width // groups for width in points]
    losses = [*points.values()]
    found = np.interp(gone, gone[steps][::-1], losses[::-1])
    slope = (losses[0] - losses[1]) / (steps[1] - steps[0])
    below = np.arange(steps[0])
    found[below] = losses[0] + slope * (steps[0] - below)
    return torch.stack([torch.arange(run + 1) * groups, torch.from_numpy(found)], dim=1)


def widths(site: Site, shares: Sequence[float], empty: bool) -> list[int]:
    """Units at these shares, each once, none of them all or nothing; rising.

    empty: of an only unit that may go, nothing.
    """
    step = site.groups
    most = site.units // step - 1
    if not most and empty and site.may_go:
        return [0]
    return sorted({min(max(1, round(share * site.units / step)), most) * step for share in shares} - {0})


def log_probabilities(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Of the answers at all tokens that the mask shows, or of each text's. [answers, choices]"""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits = getattr(model(**inputs), "logits", None)
    if logits is None:
        raise ValueError(
            f"error curves compare what models answer, and {type(model).__name__} gives no logits; expected "
            "a model with a head, or another allocator"
        )
    mask = inputs.get("attention_mask")
    if logits.dim() == 3:  # an answer for every token, not one for every text
        logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    return logits.float().log_softmax(-1)


def divergence(walk: Walk, batches: Sequence[Mapping[str, Tensor]], dense: Sequence[Tensor]) -> float:
    """KL(dense || model as it is), mean over tokens, in nats."""
    total, count = 0.0, 0
    for number, (batch, wanted) in enumerate(zip(batches, dense, strict=True)):
        with walk.resumed(number):
            given = log_probabilities(walk.model, batch)
        total += F.kl_div(given, wanted.to(given.device), log_target=True, reduction="sum").item()
        count += len(wanted)
    return total / count


def unit_price(
    model: PreTrainedModel, sites: Sequence[Site], batch: Mapping[str, Tensor], probes: Probes
) -> float:
    """What a pass over the batch takes less per unit that goes, by a copy that lost half of these sites.

    A straight line through two widths: where a kernel's time is a staircase, it is the mean of its stairs.

    Raises:
        ValueError: the copy is no faster.
    """
    cuts = {
        site.name: Cut(site.name, site.units, best_units(torch.zeros(site.units), width, site.groups))
        for site in sites
        for width in widths(site, [0.5], probes.empty)
    }
    if not cuts:
        return 0.0
    half = copy.deepcopy(model)
    apply(PrunePlan(tuple(cuts.values())), [site for site in sites if site.name in cuts], half)
    gone = sum(cut.units - len(cut.keep) for cut in cuts.values())
    if probes.cost == "macs":
        tokens = batch["input_ids"].shape[1]
        return (macs(model, tokens) - macs(half, tokens)) / gone
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    times = [
        [seconds_of(lambda one=one: one(**inputs), model.device) for one in (model, half)]
        for _ in range(ROUNDS + 1)
    ][1:]
    gain = median(whole - less for whole, less in times)
    if gain <= 0:
        raise ValueError(
            f"budget=latency: without half of its {sites[0].kind} units the model takes no less time on a "
            "calibration batch; expected longer or more samples in a batch, or budget=macs"
        )
    return gain / gone
