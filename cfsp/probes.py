"""Probes: what the whole model loses when one site alone is cut, and what a unit costs.

Each site is cut to a few widths as the run's own criterion and compensation would cut it in the dense
model, the others whole, and the model's answers are compared with the dense model's. A pass begins at the
site's block, from hidden states that are kept.
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
    criterion: Criterion,
    compensation: Compensation,
    probes: Probes,
) -> Stats:
    """Site name -> `error_curve` [points, 2]: units kept (rising, the last all), and KL(dense || cut) per
    token in nats; and `unit_cost`, in MACs or seconds of a pass, if they are wanted.

    Cost: `len(sites) * len(shares)` passes over `probes.batches` batches, each from the site's block on,
    and one more over all batches for the statistics.
    """
    chosen = batches[: probes.batches]
    dense = [log_probabilities(model, batch) for batch in chosen]
    needs = criterion.needs | compensation.needs
    stats: Stats = {}
    with Stream(model, batches) as stream:
        for block in tqdm(range(len(stream.blocks)), "probes", unit="block", disable=None):
            for site in (site for site in sites if site.block == block):
                state = Progress(model, [site])
                stat: Mapping[str, Tensor] = {}
                if needs:
                    with stream.resumed():
                        stat = collect(model, [site], batches, needs, site.blocks[0])[site.name]
                score = criterion.score(state.view(site), stat)
                points = [(site.units, 0.0)]
                for width in widths(site, probes.shares):
                    keep = best_units(score, width, site.groups)
                    cut = make_cut(state, site, keep, stat, criterion, compensation)
                    with Progress(model, [site], [cut]).gates():
                        points.append((width, divergence(stream, chosen, dense)))
                stats[site.name] = {"error_curve": torch.tensor(points[::-1], dtype=torch.float64)}
            if block < len(stream.blocks) - 1:
                stream.advance()
    if probes.cost != "parameters":
        for kind in dict.fromkeys(site.kind for site in sites):
            alike = [site for site in sites if site.kind == kind]
            price = unit_price(model, alike, chosen[0], probes.cost)
            for site in alike:
                stats[site.name]["unit_cost"] = torch.tensor(price, dtype=torch.float64)
    return stats


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
