"""Probes: what the whole model loses with the width of one site, and what a unit costs.

Each site is cut to a few widths as the run's own criterion and compensation would cut it, the others being
whole or cut to one share, and the model's answers are compared with the dense model's. A pass begins at
the site's block, from hidden states that are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from cfsp.allocators.base import Probes
from cfsp.collection import collect
from cfsp.compensation.base import Compensation
from cfsp.costs import macs, seconds_of
from cfsp.criteria.base import Criterion
from cfsp.decisions import best_units, make_cut
from cfsp.plans import Cut, PrunePlan
from cfsp.progress import Progress
from cfsp.sites import Site
from cfsp.statistics import Stats
from cfsp.stream import Stream
from cfsp.surgery import apply

ROUNDS = 9
"""Interleaved pairs of passes that a latency is the median of."""


@torch.no_grad()
def probe(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    method: tuple[Criterion, Compensation],
    probes: Probes,
    share: float,
) -> Stats:
    """Site name -> `error_curve` [points, 2]: units kept (rising, the last all), and KL(dense || model) per
    token in nats; and `unit_cost`, in MACs or seconds of a pass, if they are wanted.

    share: of their units that the other sites keep meanwhile, if they are to be cut.

    Cost: `len(sites) * (len(shares) + 1)` passes over `probes.batches` batches, each from the site's block
    on; and over all batches a pass for each site and one through all blocks (twice, if the others are cut).
    """
    chosen = batches[: probes.batches]
    dense = [log_probabilities(model, batch) for batch in chosen]
    others = cut_all(model, sites, batches, method, share) if probes.others == "cut" else {}
    stats: Stats = {}
    with Stream(model, batches) as stream:
        for block in tqdm(range(len(stream.blocks)), "probes", unit="block", disable=None):
            own = [site for site in sites if site.block == block]
            ahead = [site for site in sites if site.block >= block]
            for site in own:
                tried = [*widths(site, probes.shares), site.units, *widths(site, [share])]
                cuts = dict(zip(tried, cut_alone(stream, site, tried, method), strict=True))
                points = []
                for width in sorted({*tried[: len(probes.shares)], site.units}):
                    held = others | {site.name: cuts[width]}
                    with Progress(model, ahead, held.values()).gates():
                        points.append((width, divergence(stream, chosen, dense)))
                stats[site.name] = {"error_curve": torch.tensor(points, dtype=torch.float64)}
                if others:
                    others[site.name] = cuts[tried[-1]]
            if block < len(stream.blocks) - 1:
                with Progress(model, own, [others[site.name] for site in own if others]).gates():
                    stream.advance()
    if probes.cost != "parameters":
        for kind in dict.fromkeys(site.kind for site in sites):
            alike = [site for site in sites if site.kind == kind]
            price = unit_price(model, alike, chosen[0], probes.cost)
            for site in alike:
                stats[site.name]["unit_cost"] = torch.tensor(price, dtype=torch.float64)
    return stats


def cut_all(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    method: tuple[Criterion, Compensation],
    share: float,
) -> dict[str, Cut]:
    """Every site at one share of its units, by what it is in the dense model."""
    cuts = {}
    with Stream(model, batches) as stream:
        for block in range(max(site.block for site in sites) + 1):
            for site in (site for site in sites if site.block == block):
                (cuts[site.name],) = cut_alone(stream, site, widths(site, [share]) or [site.units], method)
            if block < len(stream.blocks) - 1:
                stream.advance()
    return cuts


def cut_alone(
    stream: Stream, site: Site, counts: Sequence[int], method: tuple[Criterion, Compensation]
) -> list[Cut]:
    """One site cut to these numbers of units, by what comes to it."""
    criterion, compensation = method
    state, stat = Progress(stream.model, [site]), {}
    if needs := criterion.needs | compensation.needs:
        with stream.resumed():
            stat = collect(stream.model, [site], stream.batches, needs, site.blocks[0])[site.name]
    score = criterion.score(state.view(site), stat)
    return [
        make_cut(state, site, best_units(score, count, site.groups), stat, criterion, compensation)
        for count in counts
    ]


def widths(site: Site, shares: Sequence[float]) -> list[int]:
    """Units at these shares, each once, none of them all or nothing; falling."""
    step = site.groups
    found = {max(1, round(share * site.units / step)) * step for share in shares}
    return sorted(found - {site.units}, reverse=True)


def log_probabilities(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Of all tokens that the mask shows. [tokens, vocabulary]"""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits = model(**inputs).logits
    mask = inputs.get("attention_mask")
    flat = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    return flat.float().log_softmax(-1)


def divergence(stream: Stream, batches: Sequence[Mapping[str, Tensor]], dense: Sequence[Tensor]) -> float:
    """KL(dense || model as it is), mean over tokens, in nats."""
    total, count = 0.0, 0
    for number, (batch, wanted) in enumerate(zip(batches, dense, strict=True)):
        with stream.resumed(number):
            given = log_probabilities(stream.model, batch)
        total += F.kl_div(given, wanted, log_target=True, reduction="sum").item()
        count += len(wanted)
    return total / count


def unit_price(
    model: PreTrainedModel, sites: Sequence[Site], batch: Mapping[str, Tensor], cost: str
) -> float:
    """What a pass over the batch takes less per unit that goes, by a copy that lost half of these sites."""
    half = copy.deepcopy(model)
    cuts = tuple(
        Cut(site.name, site.units, best_units(torch.zeros(site.units), width, site.groups))
        for site in sites
        for width in widths(site, [0.5])
    )
    apply(PrunePlan(cuts), sites, half)
    gone = sum(site.units - len(cut.keep) for site, cut in zip(sites, cuts, strict=True))
    if cost == "macs":
        tokens = batch["input_ids"].shape[1]
        return (macs(model, tokens) - macs(half, tokens)) / gone
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    times = [
        [seconds_of(lambda one=one: one(**inputs), model.device) for one in (model, half)]
        for _ in range(ROUNDS + 1)
    ][1:]
    return max(median(whole - less for whole, less in times), 1e-9) / gone
