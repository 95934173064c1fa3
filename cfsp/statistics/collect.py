"""Collection: measure all statistics that a method needs in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

import cfsp.statistics.block_distances
import cfsp.statistics.moments  # noqa: F401  (these imports register statistics)
from cfsp.bars import bar
from cfsp.checks import UnknownName
from cfsp.model.blocks import check_positions, is_in_decoder
from cfsp.model.sites import Site
from cfsp.passes.forward import check_batch, feed, shown_targets, shown_tokens, stop
from cfsp.passes.modes import evaluating
from cfsp.statistics.base import STATISTICS, Statistic, Stats
from cfsp.statistics.gradients import backpropagate


def collect(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None = None,
    checkpointing: bool = False,
) -> Stats:
    """Run every batch through the model once and return the needed statistics of every site.

    Statistics of gradients (`cfsp.statistics.gradients`) take a second forward pass and a backward pass.

    last_block: path of the block after which a pass may end, if no later block is measured.
    batches: dicts with `input_ids` [batch, tokens], `attention_mask` if tokens are padded, and `counted` if
        only some of the tokens that attention sees are measured (both masks: [batch, tokens]).
    checkpointing: recompute a block's activations in the backward pass instead of storing them.

    Raises:
        KeyError: an unknown statistic.
        ValueError: no batches; a batch that is malformed, masks every token or is longer than the
            model's positions; NaN or infinity in a statistic (the message names block and batch).
    """
    check_needs(needs)
    derived = {name for name in needs if STATISTICS[name].backward}
    observed = {*needs} - derived
    if observed and derived:
        batches = list(batches)  # read twice
    stats = observe(model, sites, batches, observed, last_block) if observed else {}
    gradients = backpropagate(model, sites, batches, derived, checkpointing) if derived else {}
    return {site.name: stats.get(site.name, {}) | gradients.get(site.name, {}) for site in sites}


def check_needs(needs: Collection[str]) -> None:
    """Raise UnknownName, a KeyError, unless all needs are names of known statistics."""
    unknown = [needs] if isinstance(needs, str) else [name for name in needs if name not in STATISTICS]
    if unknown:
        raise UnknownName(
            f"needs={unknown[0]!r}: expected a set of {', '.join(sorted(STATISTICS))}; one of your own is "
            "known once its module is imported: define it beside the criterion, or plugins=[ITS_MODULE]"
        )


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None,
) -> Stats:
    """Return the statistics of activations, from one forward pass. Raises the errors of `collect`."""
    watchers = assign(sites, needs)
    number = -1
    with evaluating(model), ExitStack() as stack:
        for (path, _), statistic in watchers.items():
            stack.callback(statistic.watch(model.get_submodule(path)).remove)
        if last_block:  # registered last, because the statistics' hooks on this block must run first
            stack.callback(model.get_submodule(last_block).register_forward_hook(stop).remove)
        for number, batch in enumerate(bar(batches, "calibration", "batch")):
            check_batch(batch, number)
            check_positions(model, batch["input_ids"].shape[1], "calibration seqlen")
            begin_batch(model, watchers, batch)
            feed(model, batch)
            check_finite(watchers, number)
    if number < 0:
        raise ValueError("calibration gave no batches; expected at least one")
    results = {key: statistic.result() for key, statistic in watchers.items()}
    return {site.name: {name: value_at_site(site, name, results) for name in needs} for site in sites}


def begin_batch(
    model: PreTrainedModel, watchers: Mapping[tuple[str, str], Statistic], batch: Mapping[str, Tensor]
) -> None:
    """Tell every statistic which tokens of a batch count: a decoder's are those of the labels."""
    shown = {decoder: mask(batch) for decoder, mask in ((False, shown_tokens), (True, shown_targets))}
    moved = {key: None if mask is None else mask.to(model.device) for key, mask in shown.items()}
    for (path, _), statistic in watchers.items():
        statistic.begin(moved[is_in_decoder(model, path)], len(batch["input_ids"]))


def activation_statistic(name: str) -> type[Statistic]:
    """Return the class of a statistic of activations."""
    kind = STATISTICS[name]
    assert issubclass(kind, Statistic), f"{name} does not say that it is made of gradients"
    return kind


def value_at_site(site: Site, name: str, results: Mapping[tuple[str, str], Tensor]) -> Tensor:
    """Return a statistic of a site: the value at its one module, or stacked values if units are blocks.

    results: (module, name) -> value, [channels] or []. -> the one module's value, or [units, its axes]
    """
    found = [results[path, name] for path in activation_statistic(name).modules(site)]
    return torch.stack(found) if site.units_are_blocks else found[0]


def assign(sites: Sequence[Site], needs: Collection[str]) -> dict[tuple[str, str], Statistic]:
    """Make one statistic per module and name. Sites that are measured at the same module share it."""
    watchers: dict[tuple[str, str], Statistic] = {}
    for site in sites:
        for name in sorted(needs):
            kind = activation_statistic(name)
            paths = kind.modules(site)
            if not paths:
                raise ValueError(
                    f"{name} cannot be measured at {site.name}; leave {site.kind!r} out of sites"
                )
            for path in paths:
                if (path, name) not in watchers:
                    watchers[path, name] = kind()
    return watchers


def check_finite(watchers: Mapping[tuple[str, str], Statistic], batch: int) -> None:
    """Raise ValueError at the first batch that made a statistic NaN or infinite.

    It tests all running results together, so a GPU synchronises once per batch.
    """
    flags = [statistic.finite() for statistic in watchers.values()]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags])  # counts are on the CPU
    if not finite.all():
        path, name = list(watchers)[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"{name} is NaN or infinite at {path} at calibration batch {batch}; check the weights, or "
            "load the model with dtype=float32"
        )
