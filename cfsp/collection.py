"""Collection: everything that criterion and allocator ask of calibration, in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cache as cache_once
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import cfsp.moments  # noqa: F401  (makes its statistics known)
from cfsp.bars import bar
from cfsp.cache import Cache, fingerprint, fingerprint_batches
from cfsp.checks import UnknownName
from cfsp.gradients import TAYLOR, backpropagate
from cfsp.layouts import check_positions
from cfsp.modes import evaluating
from cfsp.record import digest
from cfsp.sites import Site
from cfsp.sources import code_of, is_ours
from cfsp.statistics import STATISTICS, Statistic, Stats

SHARED = ("input_mean", "input_sq_mean", "input_var", "block_angular")
"""What criteria, allocators and compensations ask for as a rule. A pass whose outcome is kept collects them
all, so that a sweep over criteria makes one: beside the model's own work a few vectors cost little.
"""


def collect(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None = None,
    checkpointing: bool = False,
) -> Stats:
    """Run every batch through the model once and return the statistics asked for at every site.

    Those that are made of gradients (`cfsp.gradients`) take a second pass, with a backward one.

    last_block: path of the block after which a pass may end, if no later one is asked about.
    batches: dicts with `input_ids` [batch, tokens] and, if tokens are padded, `attention_mask`.
    checkpointing: compute a block's activations again in the backward pass instead of keeping them.

    Raises:
        KeyError: an unknown statistic.
        ValueError: no batches; a batch that is malformed, masks every token or is longer than the
            model's positions; NaN or infinity in a statistic (the message names block and batch).
    """
    known = (*STATISTICS, *TAYLOR)
    unknown = [needs] if isinstance(needs, str) else [name for name in needs if name not in known]
    if unknown:
        raise UnknownName(f"needs={unknown[0]!r}: expected a set of {', '.join(known)}")
    observed = {name for name in needs if name in STATISTICS}
    derived = {name for name in needs if name in TAYLOR}
    if observed and derived:
        batches = list(batches)  # read twice
    stats = observe(model, sites, batches, observed, last_block) if observed else {}
    gradients = backpropagate(model, sites, batches, derived, checkpointing) if derived else {}
    return {site.name: stats.get(site.name, {}) | gradients.get(site.name, {}) for site in sites}


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    last_block: str | None,
) -> Stats:
    """The statistics of activations, in one forward pass. Raises what `collect` raises."""
    watchers = assign(sites, needs)
    number = -1
    with evaluating(model), ExitStack() as stack:
        for (path, _), statistic in watchers.items():
            stack.callback(statistic.watch(model.get_submodule(path)).remove)
        if last_block:  # after the statistics, whose hooks on this block must have run
            stack.callback(model.get_submodule(last_block).register_forward_hook(stop).remove)
        for number, batch in enumerate(bar(batches, "calibration", "batch")):
            check_batch(batch, number)
            check_positions(model, batch["input_ids"].shape[1], "calibration seqlen")
            feed(model, batch, watchers.values(), number)
            check_finite(watchers, number)
    if number < 0:
        raise ValueError("calibration gave no batches; expected at least one")
    results = {key: statistic.result() for key, statistic in watchers.items()}
    return {site.name: {name: of_site(site, name, results) for name in needs} for site in sites}


def collect_once(
    cache: Cache,
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    checkpointing: bool = False,
) -> Stats:
    """What `collect` returns, of which only what the cache does not have takes a pass.

    An entry is one statistic at all sites. Its name stands for the model, the sites, the tokens, how and
    where it is computed, and the code that does it. A forward pass that is made collects `SHARED` too.
    Nothing is kept where a statistic's code is in no file, as in a notebook.
    """
    entries = {need: entry_name(need) for need in sorted({*needs, *SHARED})}
    if cache.folder is None or None in entries.values():
        return collect(model, sites, batches, needs, checkpointing=checkpointing)
    batches = list(batches)
    folder = f"statistics/{digest(identity(model, sites, batches))}"
    names = {need: f"{folder}/{entry}.safetensors" for need, entry in entries.items()}
    with cache.alone(folder):
        found = {need: cache.get(names[need], read_tensors) for need in sorted(needs)}
        missing = {need for need, values in found.items() if values is None}
        if missing & STATISTICS.keys():
            beside = [name for name in SHARED if all(STATISTICS[name].modules(site) for site in sites)]
            missing |= {name for name in beside if not cache.has(names[name])}
        made = collect(model, sites, batches, missing, checkpointing=checkpointing) if missing else {}
        if missing:
            cache.describe(folder)
        for need in sorted(missing, key=lambda need: (need in needs, need)):  # what is asked for is kept last
            found[need] = {site.name: made[site.name][need] for site in sites}
            cache.put(names[need], partial(write_tensors, found[need]))
    return {site.name: {need: found[need][site.name].to(model.device) for need in needs} for site in sites}


def entry_name(need: str) -> str | None:
    """What a statistic's entry is called: with its code, if that is not ours, which `identity` names."""
    kind = STATISTICS.get(need)
    if kind is None or is_ours(kind):
        return need
    code = code_of(kind)
    return None if code is None else f"{need}-{code}"


def identity(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """What statistics are of, and the code that makes them: what an older version kept is not read."""
    return {
        "model": fingerprint(model),
        "attention": model.config._attn_implementation,
        "device": model.device.type,
        "sites": [asdict(site) for site in sites],
        "batches": fingerprint_batches(batches),
        "code": code("statistics.py", "moments.py", "gradients.py", "collection.py"),
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ValueError if the file is no safetensors file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


@cache_once
def code(*patterns: str) -> str:
    """Names the code of some files of this package."""
    files = sorted(file for pattern in patterns for file in Path(__file__).parent.glob(pattern))
    return digest([file.read_text() for file in files])


def of_site(site: Site, name: str, results: Mapping[tuple[str, str], Tensor]) -> Tensor:
    """What was measured at the site's modules: as it is at one module, stacked where units are modules."""
    found = [results[path, name] for path in STATISTICS[name].modules(site)]
    return torch.stack(found) if site.kind == "block" else found[0]


def check_batch(batch: object, number: int) -> None:
    """Raise ValueError unless the batch is a mapping with input_ids [batch, tokens]."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"calibration batch {number} is {type(batch).__name__}; expected a dict with input_ids, a tensor "
            "of [batch, tokens], in an iterable of such"
        )


def assign(sites: Sequence[Site], needs: Collection[str]) -> dict[tuple[str, str], Statistic]:
    """One statistic per module and name; sites that are measured at one module share it."""
    watchers: dict[tuple[str, str], Statistic] = {}
    for site in sites:
        for name in sorted(needs):
            paths = STATISTICS[name].modules(site)
            if not paths:
                raise ValueError(
                    f"{name} cannot be measured at {site.name}; leave {site.kind!r} out of sites"
                )
            for path in paths:
                if (path, name) not in watchers:
                    watchers[path, name] = STATISTICS[name]()
    return watchers


def feed(
    model: PreTrainedModel, batch: Mapping[str, Tensor], statistics: Iterable[Statistic], number: int
) -> None:
    """One forward pass without the head: no statistic reads the logits."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask = inputs.get("attention_mask")
    if mask is not None and not mask.any():
        raise ValueError(f"calibration batch {number} masks every token; expected at least one to count")
    counted = None if mask is None or mask.all() else mask.flatten().bool()
    for statistic in statistics:
        statistic.mask, statistic.rows = counted, len(inputs["input_ids"])
    with suppress(Stop):
        model.base_model(**inputs, use_cache=False)


class Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


def stop(*_: Any) -> None:
    raise Stop


def check_finite(watchers: Mapping[tuple[str, str], Statistic], batch: int) -> None:
    """Raise ValueError at the first batch that made a statistic NaN or infinite.

    All running results are tested together, which costs a GPU one synchronisation per batch.
    """
    flags = [statistic.finite() for statistic in watchers.values()]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags])  # counts lie on the CPU
    if not finite.all():
        path, name = list(watchers)[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"{name} is NaN or infinite at {path} at calibration batch {batch}; check the weights, or "
            "load the model with dtype=float32"
        )
