"""Pruned models of every family, to save and to load."""

import transformers
from families import make
from plans import ones_for, random_plan

import cfsp
from cfsp.model.blocks import block_modules, places_of


def cut(family, kinds, fill=False):
    """A pruned model and its plan."""
    model = make(family)
    sites = cfsp.find_sites(model, kinds)
    fills = {site.name: ones_for([site])[site.name] if fill else None for site in sites}
    plan = random_plan(sites, fills=fills)
    if family.startswith("llama"):  # its config wants a multiple of its heads
        hidden = cfsp.Cut("model.hidden", 32, tuple(range(3, 27)))
        edits = [hidden if edit.site == "model.hidden" else edit for edit in plan.edits]
        plan = cfsp.PrunePlan(tuple(edits))
    cfsp.apply(plan, model)
    return model, plan


def emptied(family):
    """A model whose first block has lost its MLP and, where that can be, its attention."""
    model = make(family)
    kinds = [
        kind
        for kind, place in places_of(model, block_modules(model)[0]).items()
        if kind == "mlp" or place.whole
    ]
    sites = cfsp.find_sites(model, kinds)[: len(kinds)]
    fills = ones_for(sites)
    edits = tuple(cfsp.Cut(site.name, site.units, (), fills[site.name]) for site in sites)
    cfsp.apply(cfsp.PrunePlan(edits), model)
    return model, cfsp.PrunePlan(edits)


def auto_class(family):
    name = "AutoModelForMaskedLM" if family in ("bert", "roberta") else "AutoModelForCausalLM"
    return getattr(transformers, name)
