"""Cached statistics: read what was collected before, and collect only the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from cfsp.model.sites import Site
from cfsp.plans.subject import Subject
from cfsp.statistics.base import STATISTICS, Stats
from cfsp.statistics.collect import activation_statistic, collect
from cfsp.storage.code import code_of, is_ours
from cfsp.storage.fingerprints import digest, fingerprint_batches
from cfsp.storage.tensors import read_tensors, write_tensors

SHARED = ("input_mean", "input_sq_mean", "input_var", "block_angular")
"""Statistics that most criteria, allocators and compensations need. A cached pass collects all of them, so a
sweep over criteria takes one pass. They cost little beside the model's own computation.
"""


def collect_once(
    subject: Subject,
    sites: Sequence[Site],
    batches: Iterable[Mapping[str, Tensor]],
    needs: Collection[str],
    checkpointing: bool = False,
) -> Stats:
    """Return the result of `collect` for some of the subject's sites. Collect only what the cache lacks.

    An entry is one statistic at all sites. Its name depends on the model, the sites, the tokens, the device,
    the attention implementation and the code. A forward pass also collects `SHARED`. Nothing is cached if
    a statistic's code is in no file, as in a notebook.
    """
    entries = {need: entry_name(need) for need in sorted({*needs, *SHARED})}
    cache, model = subject.cache, subject.model
    if cache.folder is None or None in entries.values():
        return collect(model, sites, batches, needs, checkpointing=checkpointing)
    batches = list(batches)
    folder = f"statistics/{digest(origin_of_statistics(subject, sites, batches))}"
    names = {need: f"{folder}/{entry}.safetensors" for need, entry in entries.items()}
    with cache.alone(folder):
        found = {need: cache.get(names[need], read_tensors) for need in sorted(needs)}
        there = {need: values for need, values in found.items() if values is not None}
        missing = found.keys() - there.keys()
        if any(need in STATISTICS and not STATISTICS[need].backward for need in missing):
            beside = [
                name for name in SHARED if all(activation_statistic(name).modules(site) for site in sites)
            ]
            missing |= {name for name in beside if not cache.has(names[name])}
        made = collect(model, sites, batches, missing, checkpointing=checkpointing) if missing else {}
        if missing:
            cache.describe(folder)
        for need in sorted(missing, key=lambda need: (need in needs, need)):  # stores the needed ones last
            there[need] = {site.name: made[site.name][need] for site in sites}
            cache.put(names[need], partial(write_tensors, there[need]))
    return {site.name: {need: there[need][site.name].to(model.device) for need in needs} for site in sites}


def collect_of_dense(
    subject: Subject,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    needs: Collection[str],
    checkpointing: bool = False,
) -> Stats:
    """Return those of the needed statistics that are always of the dense model (`Quantity.of_dense`).

    They are remembered for as long as the subject lives, so that trials on the same batches measure once.
    """
    needs = sorted(need for need in needs if STATISTICS[need].of_dense)
    if not needs:
        return {site.name: {} for site in sites}
    key = (*needs, *(site.name for site in sites), fingerprint_batches(batches))
    if key not in subject.measured:
        subject.measured[key] = collect_once(subject, sites, batches, needs, checkpointing)
    return {name: dict(stat) for name, stat in subject.measured[key].items()}


def entry_name(need: str) -> str | None:
    """Return the name of a statistic's entry; None if its code is in no file.

    A statistic from outside cfsp has its code in the name; `origin_of_statistics` covers cfsp's own.
    """
    kind = STATISTICS.get(need)
    if kind is None or is_ours(kind):
        return need
    code = code_of(kind)
    return None if code is None else f"{need}-{code}"


def origin_of_statistics(
    subject: Subject, sites: Sequence[Site], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Return what statistics depend on. It includes the code, so entries of older versions are not read."""
    return {
        "model": subject.fingerprint,
        "attention": subject.model.config._attn_implementation,
        "device": subject.model.device.type,
        "sites": [asdict(site) for site in sites],
        "batches": fingerprint_batches(batches),
        "code": code_of(collect),
    }
