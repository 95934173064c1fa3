"""Surgery: carry out a plan. The only place where a weight changes its shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cfsp.plans import Cut, PrunePlan
from cfsp.sites import Site


@torch.no_grad()
def apply(plan: PrunePlan, sites: Sequence[Site], model: nn.Module) -> None:
    """Cut the model in place as the plan says.

    All cuts that meet on one axis of one weight become one mask, so each weight is indexed once
    per axis, and at most one weight exists twice at any moment.

    Raises:
        ValueError: the plan names a site that is not among `sites`, one of another size, or one
            twice. The model is untouched then.
    """
    pairs = match(plan, sites)
    masks: dict[tuple[str, int], Tensor] = {}
    for cut, site in pairs:
        if cut.fill is not None and cut.removed:
            fold_into_bias(cut, site, model)
        for member in site.members:
            length = model.get_submodule(member.module).weight.shape[member.dim]
            mask = masks.setdefault((member.module, member.dim), torch.ones(length, dtype=torch.bool))
            mask[member.places(cut.removed)] = False
    for (name, dim), mask in masks.items():
        if not mask.all():
            keep_on_axis(model.get_submodule(name), dim, mask)
    for cut, site in pairs:
        for count in site.counts:
            setattr(model.get_submodule(count.module), count.attribute, len(cut.keep) * count.per_unit)


def match(plan: PrunePlan, sites: Sequence[Site]) -> list[tuple[Cut, Site]]:
    """Pair every edit with its site, or raise ValueError."""
    by_name = {site.name: site for site in sites}
    if len({cut.site for cut in plan.edits}) < len(plan.edits):
        raise ValueError("the plan cuts a site twice; expected one edit per site")
    for cut in plan.edits:
        if cut.site not in by_name:
            raise ValueError(
                f"the plan cuts {cut.site!r}, which this model lacks; it has {', '.join(by_name)}"
            )
        if cut.units != by_name[cut.site].units:
            raise ValueError(
                f"the plan was made for {cut.units} units at {cut.site!r}; "
                f"this model has {by_name[cut.site].units}"
            )
        channels = cut.units * by_name[cut.site].span
        if cut.fill is not None and cut.fill.shape != (channels,):
            raise ValueError(f"{cut.site}: fill is {tuple(cut.fill.shape)}; expected ({channels},)")
    return [(cut, by_name[cut.site]) for cut in plan.edits]


def fold_into_bias(cut: Cut, site: Site, model: nn.Module) -> None:
    """Add what the removed channels, held at their fill, would give: b += W[:, P] fill[P].

    Computed in float64 because the sum runs over thousands of channels.
    """
    for member in site.consumers:
        module = model.get_submodule(member.module)
        places = member.places(cut.removed).to(module.weight.device)
        weight = module.weight.movedim(member.dim, 0)[places].double()  # [removed, outputs]
        channels = places.cpu() - member.offset
        fill = cut.fill[channels.to(cut.fill.device)].to(weight)
        bias = torch.zeros(weight.shape[1]).to(weight) if module.bias is None else module.bias.double()
        module.bias = nn.Parameter(
            (bias + fill @ weight).to(module.weight.dtype), requires_grad=module.weight.requires_grad
        )


def keep_on_axis(module: nn.Module, dim: int, mask: Tensor) -> None:
    """Index one axis of a Linear or Conv1D, with the bias and the size attribute that go with it."""
    output_dim, sizes = (
        (1, ("nx", "nf")) if isinstance(module, Conv1D) else (0, ("out_features", "in_features"))
    )
    kept = mask.nonzero().flatten().to(module.weight.device)
    module.weight = nn.Parameter(
        module.weight.index_select(dim, kept), requires_grad=module.weight.requires_grad
    )
    if dim == output_dim and module.bias is not None:
        module.bias = nn.Parameter(module.bias[kept], requires_grad=module.bias.requires_grad)
    setattr(module, sizes[dim], len(kept))
