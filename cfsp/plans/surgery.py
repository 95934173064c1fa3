"""Surgery: carry out a plan. The only place where a weight changes its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.adapters import unwrap, wrappers
from cfsp.model.modeling_pruned import drop_attention, drop_inputs, get_count, keep_heads, set_count
from cfsp.model.sites import Masks, Member, Site
from cfsp.model.weights import added_weight, bias_of, weight_of, whole_weight
from cfsp.plans.masks import axis_masks, refitted
from cfsp.plans.plan import Cut, Edit, PrunePlan, Route
from cfsp.plans.routes import route_units

SIZES = {
    nn.Linear: ("out_features", "in_features"),
    Conv1D: ("nx", "nf"),
    nn.Embedding: (None, "embedding_dim"),
}
"""Class of a module -> attributes that hold the lengths of its weight's axes."""

PER_BLOCK = ("layer_types", "no_rope_layers")
"""Attributes of a config that are lists with one entry per block."""


@torch.no_grad()
def apply(plan: PrunePlan, sites: Sequence[Site], model: PreTrainedModel) -> None:
    """Carry out a plan on the model, in place.

    All cuts that meet on one axis of one weight become one mask. So each weight is indexed once per
    axis, and at most one weight is in memory twice at any moment.

    Raises:
        ValueError: the plan names a site that is not among `sites`, has another size or occurs twice, or
            keeps no unit where one must stay. The model is then unchanged.
    """
    for kind, pairs in match(plan, sites).items():
        CARRIED_OUT_BY[kind](pairs, model)


def cut_units(pairs: Sequence[tuple[Cut, Site]], model: PreTrainedModel) -> None:
    """Carry out all cuts of a plan."""
    folded: dict[str, Tensor] = {}
    for cut, site in pairs:
        for member in site.consumers if site.blocks else ():
            fold_into_bias(cut, member, model, folded)
            if cut.bias is not None:
                add_to_bias(model.get_submodule(member.module), cut.bias)
            if cut.consumer is not None:
                weight = weight_of(model.get_submodule(member.module))
                new, added = refitted(cut, member, weight), added_weight(model, member.module)
                weight.copy_(new if added is None else new - added)
    masks = axis_masks(pairs, model)
    for (names, dim), mask in by_weight(masks, model).items():
        if not mask.all():
            modules = [model.get_submodule(name) for name in names]
            keep_on_axis(modules, dim, mask)
            for name in names:
                for wrapper in wrappers(model, name):
                    resize_wrapper(wrapper, model.get_submodule(name))
    for cut, site in pairs:
        if site.biased is not None and cut.removed:
            keep_heads(model.get_submodule(site.biased), cut.keep)
        for count in site.counts:
            module = model.get_submodule(count.module)
            value = get_count(module, count.attribute) * len(cut.keep) // site.units
            set_count(module, count.attribute, value)
    for cut, site in pairs:
        if not cut.keep:
            drop_site(site, model)
    for cut, site in pairs:
        if site.units_are_blocks:
            keep_blocks(cut, site, model)


def match(plan: PrunePlan, sites: Sequence[Site]) -> dict[type[Edit], list[tuple[Edit, Site]]]:
    """Group the edits by class and pair each with its site, in the order of the sites.

    Raises ValueError if an edit does not fit its site.
    """
    by_name = {site.name: site for site in sites}
    if len({edit.site for edit in plan.edits}) < len(plan.edits):
        raise ValueError("the plan cuts a site twice; expected one edit per site")
    for edit in plan.edits:
        if edit.site not in by_name:
            raise ValueError(
                f"the plan cuts {edit.site!r}, which this model lacks; it has {', '.join(by_name)}"
            )
        edit.check(by_name[edit.site])
    edits = {edit.site: edit for edit in plan.edits}
    found: dict[type[Edit], list[tuple[Edit, Site]]] = {}
    for site in sites:
        if site.name in edits:
            found.setdefault(type(edits[site.name]), []).append((edits[site.name], site))
    return found


def fold_into_bias(cut: Cut, member: Member, model: nn.Module, folded: dict[str, Tensor]) -> None:
    """Add the output of the removed channels P, held at their fill, to the bias: b += W[:, P] fill[P].

    Computed in float64 because the sum runs over thousands of channels. folded: module -> channels that
    an earlier cut removed and, if it has a fill, added (a query head of a group that is removed too).
    """
    module = model.get_submodule(member.module)
    whole = whole_weight(model, member.module)
    length = whole.shape[member.dim]
    before = folded.setdefault(member.module, torch.zeros(length, dtype=torch.bool))
    places = member.places(cut.removed)
    places = places[~before[places]]
    before[places] = True
    if cut.fill is None or not len(places):
        return
    weight = whole.movedim(member.dim, 0)[places.to(whole.device)].double()
    fill = cut.fill[(places - member.offset).to(cut.fill.device)].to(weight)  # [removed]
    add_to_bias(module, fill @ weight)


def add_to_bias(module: nn.Module, shift: Tensor) -> None:
    """Add `shift` to a consumer's bias, in float64; create the bias if there is none. shift: [outputs]"""
    weight, bias = weight_of(module), bias_of(module)
    shift = shift.double().to(weight.device)
    total = shift if bias is None else bias.double() + shift
    module.bias = nn.Parameter(total.to(weight.dtype), requires_grad=weight.requires_grad)


def by_weight(masks: Masks, model: nn.Module) -> dict[tuple[tuple[str, ...], int], Tensor]:
    """Group the masks [axis] by axis and by the modules that share its weight (tied embeddings)."""
    known, sharing = dict(model.named_modules()), {}
    for name, dim in masks:
        if name in known:  # the others are sites whose units are blocks
            sharing.setdefault((id(known[name].weight), dim), []).append(name)
    return {(tuple(names), dim): masks[names[0], dim] for (_, dim), names in sharing.items()}


def keep_on_axis(modules: Sequence[nn.Module], dim: int, mask: Tensor) -> None:
    """Keep the masked places on one axis of the weight that these modules share.

    A bias along the axis and the attribute with the axis's length are updated too.
    """
    old = weight_of(modules[0])
    kept = mask.nonzero().flatten().to(old.device)
    new = nn.Parameter(old.index_select(dim, kept), requires_grad=old.requires_grad)
    for module in modules:
        module.weight = new
        for kind, attributes in SIZES.items():
            if isinstance(module, kind):
                setattr(module, attributes[dim], len(kept))
        if hasattr(module, "normalized_shape"):
            set_count(module, "normalized_shape", (len(kept),))
        bias = bias_of(module)
        if bias is not None and dim == int(isinstance(module, Conv1D)):
            module.bias = nn.Parameter(bias[kept], requires_grad=bias.requires_grad)


def resize_wrapper(wrapper: nn.Module, module: nn.Module) -> None:
    """Set the lengths that a wrapper of adapters holds to those of the layer inside."""
    output = int(isinstance(module, Conv1D))
    for name, dim in (("out_features", output), ("in_features", 1 - output)):
        if hasattr(wrapper, name):
            setattr(wrapper, name, weight_of(module).shape[dim])


def drop_site(site: Site, model: nn.Module) -> None:
    """Replace the consumer of an MLP without units, or a whole attention without units, by a constant."""
    (path,), consumer = (
        site.blocks,
        unwrap(model, site.consumers[0].module),
    )  # adapters add nothing to nothing
    block = model.get_submodule(path)
    inner = consumer.removeprefix(f"{path}.")
    if site.units_are_whole_heads:
        assert site.whole is not None, f"{site.name} cannot go as a whole, as the check of its cut says"
        index = int(path.rpartition(".")[2])  # in its own stack
        drop_attention(block, site.whole.removeprefix(f"{path}."), inner, index)
    else:
        drop_inputs(block, inner)


def keep_blocks(cut: Cut, site: Site, model: PreTrainedModel) -> None:
    """Keep these blocks, renumber them, and shorten the config's lists of one entry per block."""
    path = site.name.rsplit(".", 1)[0]
    blocks = [model.get_submodule(site.blocks[unit]) for unit in cut.keep]
    model.set_submodule(path, nn.ModuleList(blocks))
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                set_count(module, "layer_idx", index)
    config = model.config
    for name in PER_BLOCK:
        if isinstance(value := getattr(config, name, None), list):
            setattr(config, name, [value[unit] for unit in cut.keep])
    config.num_hidden_layers = len(blocks)


CARRIED_OUT_BY: Mapping[type[Edit], Callable[[Sequence[tuple[Any, Site]], PreTrainedModel], None]] = {
    Cut: cut_units,
    Route: route_units,
}
"""Class of edit -> function that carries out all edits of this class, given with their sites."""
