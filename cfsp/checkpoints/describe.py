"""Descriptions: the config that defines the shapes of a pruned model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cfsp.checkpoints.saved_classes import auto_map, config_class, own_modules, pruned_class, stock_class
from cfsp.model.blocks import block_modules, blocks_path, count_paths, layout_of, places_of, stacks_of
from cfsp.model.families import Layout, Place
from cfsp.model.find_sites import head_channels
from cfsp.model.modeling_pruned import OWN_MODULES, linear_sizes
from cfsp.model.shapes import block_shape
from cfsp.model.sites import Site
from cfsp.model.weights import weight_of

AllSizes = Sequence[Sequence[Mapping[str, Any]]]
"""Stack -> block -> its sizes, by what they count."""


def describe(model: PreTrainedModel) -> PreTrainedConfig:
    """Return a config that defines the model's shapes; a plain one if possible.

    Raises ValueError if no config does.
    """
    stock, sizes = stock_class(model), [stack_sizes(model, stack) for stack in stacks_of(model)]
    base, own = base_config(model), own_modules(model)
    plain = plain_config(model, base, sizes)
    if plain is not None:
        plain.architectures = [stock.__name__]  # of a model with modules of its own: those who skip its code
        if own:
            plain.pruned, plain.auto_map = {"stock": stock.__name__, "modules": own}, auto_map(stock)
        if difference(model, pruned_class(stock) if own else stock, plain) is None:
            return plain
    config = differing_blocks(model, base, stock, sizes)
    problem = difference(model, pruned_class(stock), config)
    if problem:
        raise ValueError(f"{type(config).__name__} cannot say what this model is: {problem}")
    return config


def base_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the model's config as a plain one: with its residual width and without the sizes of blocks."""
    base = copy.deepcopy(model.config)
    base.__class__ = config_class(stock_class(model))  # not that of a checkpoint's modelling file
    base.per_layer_config = None
    for name in ("pruned", "auto_map"):
        base.__dict__.pop(name, None)
    if (head := model.get_output_embeddings()) is not None:  # follow the weights, not the flag
        base.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    hidden = weight_of(model.get_input_embeddings()).shape[1]
    cut_hidden = bool(layout_of(model).norms) and hidden != base.hidden_size
    blocks = block_sizes(model)
    cut_heads = any(one.get("heads") != base.num_attention_heads for one in blocks if "heads" in one)
    if cut_hidden or (cut_heads and len(stacks_of(model)) == 1):
        base.head_dim = head_channels(base)
    if cut_hidden:
        base.hidden_size = hidden
    return base


def plain_config(model: PreTrainedModel, base: PreTrainedConfig, sizes: AllSizes) -> PreTrainedConfig | None:
    """Return the config without a table of sizes, if all blocks of a stack have the same ones.

    It may still not be that of the model. Returns None if a name would have two values, or if no attention
    has a head left: configs divide by their number.
    """
    named: dict[str, int] = {}
    for stack, blocks in zip(stacks_of(model), sizes, strict=True):
        if any(one != blocks[0] or "kept" in one for one in blocks):
            return None
        if 0 in (blocks[0].get("heads"), blocks[0].get("groups"), blocks[0].get("cross")):
            return None
        for what, value in blocks[0].items():
            name = stack.names["heads" if what == "cross" else what]
            if named.setdefault(name, value) != value:
                return None
    plain = copy.deepcopy(base)
    for name, value in named.items():
        setattr(plain, name, value)
    return plain


def differing_blocks(
    model: PreTrainedModel, base: PreTrainedConfig, stock: type[PreTrainedModel], sizes: AllSizes
) -> PreTrainedConfig:
    """Return the config of a model that needs `modeling_pruned`."""
    config = copy.deepcopy(base)
    with torch.device("meta"):
        ordinary = dict(stock(copy.deepcopy(base)).named_parameters())
    tables = [stack_table(model, stack) for stack in stacks_of(model)]
    biases, own = added_biases(model, ordinary), own_modules(model)
    shared = {"stock": stock.__name__, "biases": biases, "modules": own}
    config.architectures = [f"Pruned{stock.__name__}"]
    config.auto_map = auto_map(stock)
    if len(tables) > 1:  # transformers' `per_layer_config` is of one stack
        stacks = [table | {"sizes": blocks} for table, blocks in zip(tables, sizes, strict=True)]
        config.pruned = shared | {"stacks": stacks}
        return config
    names = {what: layout_of(model).names[what] for what in sizes[0][0]}
    config.pruned = shared | tables[0] | {"names": names}
    config.allow_global_per_layer_attribute_access = True  # validators of some families read it
    config.per_layer_config = {
        index: {names[what]: value for what, value in one.items()} for index, one in enumerate(sizes[0])
    }
    return config


def stack_table(model: PreTrainedModel, stack: Layout) -> dict[str, Any]:
    """Return what `modeling_pruned` must know about the blocks of one stack, besides their sizes."""
    path = blocks_path(model, stack)
    places = places_of(model, f"{path}.0")
    table = {
        "blocks": path,
        "head_dim": head_channels(model.config, stack.names.get("heads", "num_attention_heads")),
        "linears": linears(places),
        "counts": [
            [*where, f"cross_{what}" if kind == "cross_attention" else what]
            for kind, place in places.items()
            for where, what in count_paths(place).items()
        ],
    }
    wholes = {kind: place.whole for kind, place in places.items() if kind != "mlp"}
    return {"attention": None} | table | wholes


def added_biases(model: PreTrainedModel, ordinary: Mapping[str, Any]) -> list[str]:
    """Return the paths of the family's modules with a bias that is not among the ordinary parameters."""
    own = [path for path, module in model.named_modules() if type(module).__name__ in OWN_MODULES]
    return [
        name.removesuffix(".bias")
        for name, _ in model.named_parameters()
        if name.endswith(".bias") and name not in ordinary and not name.startswith(tuple(own))
    ]


def linears(places: Mapping[str, Place]) -> dict[str, list[str | None]]:
    """Return path in a block -> [runs of its outputs, runs of its inputs]."""
    table: dict[str, list[str | None]] = {}
    for kind, place in places.items():
        crosses = kind == "cross_attention"
        for path, runs in place.producers.items():
            table[path] = ["x" if crosses else "".join(runs), None]
        table[place.consumer] = [None, {"mlp": "n", "cross_attention": "x"}.get(kind, "q")]
    return table


def block_sizes(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return the sizes of every block, by what they count; an encoder's before its decoder's."""
    return [one for stack in stacks_of(model) for one in stack_sizes(model, stack)]


def stack_sizes(model: PreTrainedModel, stack: Layout) -> list[dict[str, Any]]:
    """Count neurons, query heads and key/value groups of a stack's blocks, if the family has sites for them.

    cross: heads that read the encoder. kept: path of an attention -> its heads that are left, if some went.
    """
    path = blocks_path(model, stack)
    head_dim = head_channels(model.config, stack.names.get("heads", "num_attention_heads"))
    sizes = []
    for block in (one for one in block_modules(model) if one.rpartition(".")[0] == path):
        places = places_of(model, block)
        one: dict[str, Any] = block_shape(model, block, head_dim).named()
        if "groups" not in stack.names:
            one.pop("groups", None)
        if "cross_attention" in places:
            one["cross"] = inputs_left(model, f"{block}.{places['cross_attention'].consumer}") // head_dim
        biased = [place.biased for place in places.values() if place.biased]
        kept = {name: getattr(model.get_submodule(f"{block}.{name}"), "kept", None) for name in biased}
        if kept := {name: heads for name, heads in kept.items() if heads is not None}:
            one["kept"] = kept
        sizes.append(one)
    return sizes


def inputs_left(model: nn.Module, path: str) -> int:
    return linear_sizes(model.get_submodule(path))[1]


def difference(model: PreTrainedModel, kind: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    """Name a parameter's shape or a module's number in which a model made from the config differs."""
    try:
        config.validate()
        with torch.device("meta"):
            made = kind(copy.deepcopy(config))
    except (ValueError, StrictDataclassError) as error:
        return " ".join(str(error).split())
    shapes = [{name: weight.shape for name, weight in one.named_parameters()} for one in (model, made)]
    for name in shapes[0].keys() | shapes[1].keys():
        if shapes[0].get(name) != shapes[1].get(name):
            return name
    modules = dict(made.named_modules())
    for path, module in model.named_modules():
        if path in modules and (name := unequal_number(module, modules[path])):
            return f"{path}.{name}"
    return None


def unequal_number(module: nn.Module, made: nn.Module) -> str | None:
    """Name a numeric attribute, other than `hidden_size`, in which two modules differ."""
    for name, value in vars(module).items():
        if type(value) in (int, float) and name != "hidden_size" and getattr(made, name, value) != value:
            return name
    return None


def check_saving(model: PreTrainedModel, sites: Sequence[Site], step: int) -> None:
    """Raise ValueError, before the work, if the pruned model could not be saved.

    step: step of the residual width. Configs of some families, such as Llama's, allow only certain widths.
    """
    describe(model)
    heads = model.config.num_attention_heads
    for site in sites:
        if not site.units_are_residual_channels:
            continue
        config = copy.deepcopy(model.config)
        config.head_dim, config.hidden_size = head_channels(config), site.units - step
        try:
            config.validate()
        except StrictDataclassError as error:
            raise ValueError(
                f"a {model.config.model_type} of {config.hidden_size} residual channels cannot be saved: its "
                f"config wants a multiple of its {heads} heads; expected allocator.round_to={heads}, or "
                "another multiple"
            ) from error
