"""Collection: everything that criterion and allocator ask of calibration, in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from cfsp.layouts import check_positions
from cfsp.sites import Site
from cfsp.statistics import STATISTICS, Statistic, Stats


@torch.no_grad()
def collect(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None = None,
) -> Stats:
    """Run every batch through the model once and return the statistics asked for at every site.

    last_block: path of the block after which a pass may end, if no later one is asked about.
    batches: dicts with `input_ids` [batch, tokens] and, if tokens are padded, `attention_mask`.

    Raises:
        KeyError: an unknown statistic.
        ValueError: no batches; a batch that is malformed, masks every token or is longer than the
            model's positions; NaN or infinity in a statistic (the message names block and batch).
    """
    unknown = [needs] if isinstance(needs, str) else [name for name in needs if name not in STATISTICS]
    if unknown:
        raise KeyError(f"needs={unknown[0]!r}: expected a set of {', '.join(STATISTICS)}")
    watchers = assign(sites, needs)
    distinct = {id(statistic): (statistic, site) for (site, _), statistic in watchers.items()}
    pairs = list(distinct.values())
    training = [module for module in model.modules() if module.training]
    handles = []
    number = -1
    try:
        model.eval()
        for statistic, site in pairs:
            handles.append(statistic.watch(model, site))
        if last_block:  # after the statistics, whose hooks on this block must have run
            handles.append(model.get_submodule(last_block).register_forward_hook(stop))
        for number, batch in enumerate(tqdm(batches, "calibration", unit="batch", disable=None)):
            check_batch(batch, number)
            check_positions(model, batch["input_ids"].shape[1], "calibration seqlen")
            feed(model, batch, [statistic for statistic, _ in pairs], number)
            check_finite(pairs, number)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if number < 0:
        raise ValueError("calibration gave no batches; expected at least one")
    stats: Stats = {site.name: {} for site in sites}
    for (site, name), statistic in watchers.items():
        stats[site.name][name] = statistic.result()
    return stats


def check_batch(batch: object, number: int) -> None:
    """Raise ValueError unless the batch is a mapping with input_ids [batch, tokens]."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"calibration batch {number} is {type(batch).__name__}; expected a dict with input_ids, a tensor "
            "of [batch, tokens], in an iterable of such"
        )


def assign(sites: Sequence[Site], needs: Collection[str]) -> dict[tuple[Site, str], Statistic]:
    """One statistic per site and name; the sites of a block share those measured per block."""
    made: dict[tuple[str, str], Statistic] = {}
    watchers = {}
    for site in sites:
        for name in sorted(needs):
            place = site.block_module if STATISTICS[name].per_block else site.name
            watchers[site, name] = made.setdefault((place, name), STATISTICS[name]())
    return watchers


def feed(
    model: PreTrainedModel, batch: Mapping[str, Tensor], statistics: Sequence[Statistic], number: int
) -> None:
    """One forward pass without the head: no statistic reads the logits."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask = inputs.get("attention_mask")
    if mask is not None and not mask.any():
        raise ValueError(f"calibration batch {number} masks every token; expected at least one to count")
    counted = None if mask is None or mask.all() else mask.flatten().bool()
    for statistic in statistics:
        statistic.mask = counted
    with suppress(Stop):
        model.base_model(**inputs, use_cache=False)


class Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


def stop(*_: Any) -> None:
    raise Stop


def check_finite(pairs: Sequence[tuple[Statistic, Site]], batch: int) -> None:
    """Raise ValueError at the first batch that made a statistic NaN or infinite.

    All running results are tested together, which costs a GPU one synchronisation per batch.
    """
    finite = torch.stack([statistic.result().isfinite().all() for statistic, _ in pairs])
    if not finite.all():
        statistic, site = pairs[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"{statistic.name} is NaN or infinite in block {site.block} ({site.name}) at calibration "
            f"batch {batch}; check the weights, or load the model with dtype=float32"
        )
