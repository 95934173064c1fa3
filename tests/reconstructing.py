"""Reconstructions that are small enough to run in a moment."""

import copy

import torch
from families import batches, kinds_of

import cfsp
from cfsp.data.examples import Examples, Split
from cfsp.data.sources import Prose
from cfsp.data.texts import Stdlib
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.recovery.base import Setting, block_parameters, change_of
from cfsp.recovery.reconstruction import Reconstruction


def reconstruction(**options) -> Reconstruction:
    defaults = {
        "data": Examples({"unread": Prose(Stdlib("train"))}, None, 12, packing=True, held_out=6, seed=0),
        "target": "stream",
        "sublayers": "cut",
        "steps": 8,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "warmup": 0,
        "scheduler": "cosine",
        "evaluate_every": 2,
        "patience": None,
        "hidden_states": "memory",
        "seed": 0,
    }
    return Reconstruction(**{**defaults, **options})


def examples(train: int = 10, held_out: int = 6, tokens: int = 12) -> Split:
    """Random tokens; every other row is a few shorter, so that there is padding."""
    ids = batches(count=1, size=train + held_out, tokens=tokens)[0]["input_ids"].tolist()
    rows = [{"input_ids": row[: tokens - 3 * (number % 2)]} for number, row in enumerate(ids)]
    return Split(rows[:train], {"text": rows[train:]}, {}, {"text": [*range(train)]})


def cut(model, keep: dict[str, tuple[int, ...]]):
    """The pruned copy of a model, and what was done. keep: kind -> the units of all of its sites."""
    pruned = copy.deepcopy(model)
    sites = cfsp.find_sites(pruned, list(keep))
    plan = PrunePlan(tuple(Cut(site.name, site.units, keep[site.kind]) for site in sites), {})
    cfsp.apply(plan, pruned)
    return pruned, change_of(block_parameters(model), pruned, plan)


def halves(model) -> dict[str, tuple[int, ...]]:
    sites = cfsp.find_sites(model, kinds_of(model))
    return {site.kind: tuple(range(0, site.units, 2)) for site in sites}


def tune(recovery, dense, pruned, change, folder, follow=lambda values, step: None, rows=None):
    setting = Setting(pruned, None, change, folder, dense, follow)
    return recovery.run(setting, rows or examples()).training


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
