"""Finding sites: list the sites of a model from its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.adapters import adapter_members, why_not_low_rank, wrappers
from cfsp.model.blocks import (
    block_modules,
    count_paths,
    layout_of,
    place_kinds,
    places_of,
    stack_of,
    stacks_of,
)
from cfsp.model.sites import Count, Member, Site
from cfsp.model.weights import bias_of, path_inside, weight_of, why_no_linear

PLACE_OF_KIND = {
    "mlp": "mlp",
    "attention": "attention",
    "query_heads": "attention",
    "cross_attention": "cross_attention",
}
"""Kind of a site in a block -> the name of its place in a layout."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HOMES = (
    "torch.nn.modules.",
    "transformers.models.",
    "transformers.pytorch_utils",
    "cfsp.model.modeling_pruned",
    "cfsp.model.modeling_routed",
)
"""Modules that may define a model's layers, besides the module that defines the model."""


def find_sites(model: PreTrainedModel, kinds: Sequence[str] = ("mlp",)) -> list[Site]:
    """Return the sites of these kinds, block by block, then those that belong to no single block.

    Sizes are read from the weights, so a pruned model has its present sizes.

    Raises:
        ValueError: the model's type has no layout or lacks a kind, or a layer is not of the class
            or the dtype that transformers gives it.
    """
    check_modules(model)
    known = site_kinds(model)
    if not isinstance(kinds, list | tuple) or not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"sites={kinds!r}: expected a list of one or more of {known}")
    for kind in kinds:
        if kind not in known:
            raise ValueError(
                f"sites={[*kinds]}: this {model.config.model_type} has no {kind!r} whose units can go; "
                f"expected one or more of {known}"
            )
    sites = [
        make_site(model, kind, block, path)
        for block, path in enumerate(block_modules(model))
        for kind in kinds
        if PLACE_OF_KIND.get(kind) in places_of(model, path) and not is_skipped(model, kind, path)
    ]
    if "block" in kinds:
        sites.append(block_site(model))
    if "hidden" in kinds:
        sites.append(hidden_site(model))
    return sites


def find_again(model: PreTrainedModel, sites: Sequence[Site]) -> list[Site]:
    """Return the same sites of a model whose layers adapters have wrapped or left since."""
    kinds = [*dict.fromkeys(site.kind for site in sites)]
    found = {site.name: site for site in find_sites(model, kinds)}
    return [found[site.name] for site in sites]


def check_modules(model: nn.Module) -> None:
    """Raise ValueError if a layer was replaced or quantised, so that its weight cannot be cut.

    Low-rank adapters of peft around a layer are cut with it.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"a {type(model).__name__} cannot be pruned; expected a model of transformers (adapters of peft: "
            "get_base_model() to keep them, or merge_and_unload() first)"
        )
    names = {module: name for name, module in model.named_modules()}
    paths = [path_inside(model, name) for name in linear_paths(model)]
    check_adapters(model, paths)
    linears = [model.get_submodule(path) for path in paths]
    for module in [model.get_input_embeddings(), *linears, model.get_output_embeddings()]:
        if module is None or is_plain(module, (*HOMES, type(model).__module__)):
            continue
        kind, weight = type(module), getattr(module, "weight", None)
        dtype = f" of {str(weight.dtype).removeprefix('torch.')}" if isinstance(weight, Tensor) else ""
        raise ValueError(
            f"{names[module]} is a {kind.__module__}.{kind.__qualname__}{dtype}; expected the family's own "
            "layer of floating-point weights (adapters: merge_and_unload() first; quantised: dequantize())"
        )


def check_adapters(model: nn.Module, paths: Sequence[str]) -> None:
    """Raise ValueError if a layer's weight is not there to be cut, or its adapters are no low-rank ones."""
    for path in paths:
        reasons = [why_no_linear(model.get_submodule(path)), *map(why_not_low_rank, wrappers(model, path))]
        for why in filter(None, reasons):
            raise ValueError(f"{path} cannot be cut: {why}")


def linear_paths(model: PreTrainedModel) -> Iterator[str]:
    """Yield the paths of the linear layers at sites, except those of removed attentions."""
    for path in block_modules(model):
        for kind, place in places_of(model, path).items():
            if kind == "mlp" or not is_skipped(model, kind, path):
                yield from (f"{path}.{name}" for name in (*place.producers, place.consumer))


def is_plain(module: nn.Module, homes: tuple[str, ...]) -> bool:
    """Return whether a layer has only a floating-point weight and a bias. homes: where its class may be."""
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        return False
    known, weight = type(module).__module__.startswith(homes), module.weight
    return known and type(weight) is nn.Parameter and weight.dtype in FLOATS


def site_kinds(model: PreTrainedModel) -> list[str]:
    """Return the kinds of sites that this model has, by its family and its config.

    mlp: neurons. attention: heads, or key/value groups with their query heads. cross_attention: heads of a
    decoder that read the encoder's output. query_heads: query heads, the same number in each group.
    block: whole blocks. hidden: channels of the residual stream.
    """
    layout, config = layout_of(model), model.config
    kinds = place_kinds(model)
    if len(stacks_of(model)) > 1:  # a decoder's blocks and an encoder's are not one list
        return kinds
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if "attention" in kinds and shared < config.num_attention_heads:
        kinds.append("query_heads")
    # All blocks (and all channels) are units of one site, so allocators and plans need no special case.
    if not getattr(config, "scale_attn_by_inverse_layer_idx", False):  # GPT-2 may scale by the block's index
        kinds.append("block")
    if layout.norms:
        kinds.append("hidden")
    return kinds


def head_channels(config: PreTrainedConfig, heads: str = "num_attention_heads") -> int:
    """Return the number of channels of one head. heads: the config's name for the number of heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // getattr(config, heads)


def is_skipped(model: PreTrainedModel, kind: str, path: str) -> bool:
    """Return whether an earlier cut left no units of this kind in a block."""
    consumer = places_of(model, path)[PLACE_OF_KIND[kind]].consumer
    return axis_length(model, f"{path}.{consumer}", output=False) == 0


def make_site(model: PreTrainedModel, kind: str, block: int, path: str) -> Site:
    """Make one site of a block. Its members and number of units are read from the block's modules."""
    place = places_of(model, path)[PLACE_OF_KIND[kind]]
    consumer, unit = path_inside(model, f"{path}.{place.consumer}"), unit_of(model, kind, path)
    span, dim = unit.spans[unit.own], axis(model.get_submodule(consumer), output=False)
    units = axis_length(model, consumer, output=False) // span
    producers = tuple(
        member
        for name, runs in place.producers.items()
        for member in axis_members(model, path_inside(model, f"{path}.{name}"), runs, unit, units)
    )
    consumers = (Member(consumer, dim, span),)
    return Site(
        name=f"{path}.{kind}",
        kind=kind,
        units=units,
        block=block,
        blocks=(path,),
        producers=producers,
        consumers=consumers,
        adapters=adapter_members(model, producers + consumers),
        counts=tuple(
            Count(f"{path}.{module}", attribute)
            for (module, attribute), what in count_paths(place).items()
            if what in unit.counted
        ),
        groups=unit.groups,
        whole=f"{path}.{place.whole}" if place.whole else None,
        biased=f"{path}.{place.biased}" if place.biased else None,
    )


@dataclass(frozen=True)
class Unit:
    """The parts of one unit of a site, in the letters of `cfsp.model.families`.

    own: the letter of its channels at the consumer's input. spans: letter -> number of places on an axis;
    places of other letters are not removed with the unit.
    counted: the counts of a layout that shrink with it. groups: see `Site`.
    """

    own: str
    spans: Mapping[str, int]
    counted: frozenset[str]
    groups: int = 1


def unit_of(model: PreTrainedModel, kind: str, path: str) -> Unit:
    """Return the parts of one neuron, key/value group or query head of a block."""
    if PLACE_OF_KIND[kind] == "mlp":
        return Unit("n", {"n": 1}, frozenset({"width"}))
    place = places_of(model, path)[PLACE_OF_KIND[kind]]
    head_dim = head_channels(model.config, stack_of(model, path).names.get("heads", "num_attention_heads"))
    heads = axis_length(model, f"{path}.{place.consumer}", output=False) // head_dim
    rows = sum(axis_length(model, f"{path}.{name}", output=True) for name in place.producers)
    shared, rest = divmod(rows - heads * head_dim, 2 * head_dim)  # as many keys as values
    if rest:
        raise ValueError(f"{path}: {rows} rows are no multiple of the {head_dim} channels of a head")
    if kind == "query_heads":
        return Unit("q", {"q": head_dim}, frozenset({"heads", "channels", "heads_per_group"}), shared)
    spans = {"q": heads // shared * head_dim, "k": head_dim, "v": head_dim}
    return Unit("q", spans, frozenset({"heads", "channels", "groups"}))


def axis_members(
    model: PreTrainedModel, name: str, runs: Sequence[str], unit: Unit, units: int
) -> Iterator[Member]:
    """Yield a member for each of a producer's runs that belong to the units. Other runs come last."""
    module, offset = model.get_submodule(name), 0
    dim, has_bias = axis(module, output=True), bias_of(module) is not None
    for run in runs:
        if unit.spans.keys() >= {*run}:
            span = sum(unit.spans[letter] for letter in run)
            yield Member(name, dim, span, offset, has_bias)
            offset += span * units


def block_site(model: PreTrainedModel) -> Site:
    """Make the site whose units are the model's blocks."""
    blocks = block_modules(model)
    return Site(f"{blocks[0].rsplit('.', 1)[0]}.block", "block", len(blocks), blocks=tuple(blocks))


def hidden_site(model: PreTrainedModel) -> Site:
    """Make the site whose units are the channels of the residual stream."""
    layout = layout_of(model)
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    norms = [f"{path}.{norm}" for path in block_modules(model) for norm in layout.norms]
    norms.append(f"{base}{layout.last_norm}")
    writers = [Member(f"{base}{name}", 1) for name in layout.embeddings]
    readers = []
    for path in block_modules(model):
        for kind, place in places_of(model, path).items():
            gone = kind == "attention" and is_skipped(model, kind, path)
            for producer in () if gone else place.producers:
                name = path_inside(model, f"{path}.{producer}")
                readers.append(Member(name, axis(model.get_submodule(name), output=False)))
            name = path_inside(model, f"{path}.{place.consumer}")
            module = model.get_submodule(name)
            writers.append(Member(name, axis(module, output=True), bias=bias_of(module) is not None))
    for name in norms:
        bias = bias_of(model.get_submodule(name)) is not None
        readers.append(Member(name, 0, bias=bias))
    head = model.get_output_embeddings()
    if head is not None:
        name = next(name for name, module in model.named_modules() if module is head)
        readers.append(Member(name, 1))
    units = weight_of(model.get_submodule(norms[0])).shape[0]
    beside = adapter_members(model, [*writers, *readers])
    return Site(f"{base}hidden", "hidden", units, None, (), (*writers,), (*readers,), beside, norms=(*norms,))


def axis(module: nn.Module, output: bool) -> int:
    """Return the dimension of a weight that runs over outputs (or inputs). Conv1D (GPT-2) is transposed."""
    return int(isinstance(module, Conv1D)) if output else int(not isinstance(module, Conv1D))


def axis_length(model: PreTrainedModel, name: str, output: bool) -> int:
    module = model.get_submodule(path_inside(model, name))
    return weight_of(module).shape[axis(module, output)]
