"""Plans of random cuts, and what a model computes."""

import torch
from families import all_kinds

from cfsp.plans.choose import best_units
from cfsp.plans.plan import Cut, PrunePlan


def random_plan(sites, seed=0, fills=None) -> PrunePlan:
    """Another width at every site, at least one unit each."""
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for number, site in enumerate(sites):
        kept = max(1, site.units // site.groups * (2 + number) // 7) * site.groups
        keep = best_units(torch.rand(site.units, generator=generator), kept, site.groups)
        edits.append(Cut(site.name, site.units, keep, None if fills is None else fills[site.name]))
    return PrunePlan(tuple(edits))


def ones_for(sites) -> dict[str, torch.Tensor]:
    return {site.name: torch.ones(site.units * site.span) for site in sites}


@torch.no_grad()
def logits(model, tokens):
    return model(**tokens).logits


def kind_sets(model) -> list[list[str]]:
    """Every kind of site by itself, and all kinds in one plan."""
    return [*([kind] for kind in all_kinds(model)), all_kinds(model)]
