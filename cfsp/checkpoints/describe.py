"""Descriptions: a config, and if needed a modelling file, that define the shapes of a pruned model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from cfsp.model import modeling_pruned
from cfsp.model.blocks import block_modules, count_paths, layout_of, places_of
from cfsp.model.families import Place
from cfsp.model.find_sites import head_channels
from cfsp.model.modeling_pruned import Pruned
from cfsp.model.shapes import Shapes
from cfsp.model.sites import Site

MODELING_FILE = "modeling_pruned.py"
"""Name of the modelling file in a checkpoint."""

AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
"""Ending of a class that can be saved -> auto class that loads it."""


def describe(model: PreTrainedModel) -> PreTrainedConfig:
    """Return a config that defines the model's shapes; a plain one if possible.

    Raises ValueError if no config does.
    """
    stock, sizes = stock_class(model), block_sizes(model)
    base = base_config(model)
    if all(one == sizes[0] for one in sizes):
        plain = copy.deepcopy(base)
        for what, value in sizes[0].items():
            setattr(plain, layout_of(model).names[what], value)
        if difference(model, stock, plain) is None:
            plain.architectures = [stock.__name__]
            return plain
    config = differing_blocks(model, base, stock, sizes)
    problem = difference(model, pruned_class(stock), config)
    if problem:
        raise ValueError(f"{type(config).__name__} cannot say what this model is: {problem}")
    return config


def base_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the model's config as a plain one: with its residual width and without the sizes of blocks."""
    base = copy.deepcopy(model.config)
    base.per_layer_config = None
    for name in ("pruned", "auto_map"):
        base.__dict__.pop(name, None)
    if (head := model.get_output_embeddings()) is not None:  # follow the weights, not the flag
        base.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    shapes = Shapes.of(model)
    cut_hidden = bool(layout_of(model).norms) and shapes.hidden != base.hidden_size
    if cut_hidden or any(one.heads not in (None, base.num_attention_heads) for one in shapes.blocks):
        base.head_dim = shapes.head_dim
    if cut_hidden:
        base.hidden_size = shapes.hidden
    return base


def differing_blocks(
    model: PreTrainedModel, base: PreTrainedConfig, stock: type[PreTrainedModel], sizes: list[dict[str, int]]
) -> PreTrainedConfig:
    """Return the config of a model that needs `modeling_pruned`."""
    layout, places = layout_of(model), places_of(model)
    config = copy.deepcopy(base)
    with torch.device("meta"):
        ordinary = dict(stock(copy.deepcopy(base)).named_parameters())
    counts = [[*path, what] for place in places.values() for path, what in count_paths(place).items()]
    config.pruned = {
        "stock": stock.__name__,
        "blocks": block_modules(model)[0].rsplit(".", 1)[0],
        "names": {what: layout.names[what] for what in sizes[0]},
        "head_dim": head_channels(base),
        "linears": linears(places),
        "counts": counts,
        "attention": places["attention"].whole if "attention" in places else None,
        "biases": [
            name.removesuffix(".bias")
            for name, _ in model.named_parameters()
            if name.endswith(".bias") and name not in ordinary
        ],
    }
    name = f"Pruned{stock.__name__}"
    config.architectures = [name]
    module = Path(MODELING_FILE).stem
    config.auto_map = {
        "AutoModel": f"{module}.Pruned{headless(stock).__name__}",
        auto_class(stock.__name__): f"{module}.{name}",
    }
    config.allow_global_per_layer_attribute_access = True  # validators of some families read it
    config.per_layer_config = {
        index: {layout.names[what]: value for what, value in one.items()} for index, one in enumerate(sizes)
    }
    return config


def linears(places: Mapping[str, Place]) -> dict[str, list[str | None]]:
    """Return path in a block -> [runs of its outputs, runs of its inputs]."""
    table: dict[str, list[str | None]] = {}
    for kind, place in places.items():
        for path, runs in place.producers.items():
            table[path] = ["".join(runs), None]
        table[place.consumer] = [None, "n" if kind == "mlp" else "q"]
    return table


def block_sizes(model: PreTrainedModel) -> list[dict[str, int]]:
    """Return neurons, query heads and key/value groups of every block, as far as its config names them."""
    names = layout_of(model).names
    return [
        {what: value for what, value in one.named().items() if what in names}
        for one in Shapes.of(model).blocks
    ]


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


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the model's class in transformers, also if it was loaded from a pruned checkpoint.

    Raises ValueError if this class cannot be saved.
    """
    name = type(model).__name__.removeprefix("Pruned")
    stock = getattr(transformers, name, None)
    if stock is None or auto_class(name) is None:
        raise ValueError(
            f"a {name} cannot be saved; expected a class of transformers that ends in one of "
            f"{', '.join(AUTO_CLASSES)} (adapters of peft: merge_and_unload() first)"
        )
    return stock


def auto_class(name: str) -> str | None:
    """Return the name of the auto class that loads a class of this name, by its ending."""
    return next((auto for ending, auto in AUTO_CLASSES.items() if name.endswith(ending)), None)


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


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make the class that a checkpoint's modelling file defines. Saving it also writes that file."""

    class Made(Pruned, stock):  # pyright: ignore[reportIncompatibleMethodOverride]  # one keyword is taken out
        def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
            super().save_pretrained(save_directory, *args, **options)
            (Path(save_directory) / MODELING_FILE).write_text(modeling_file(stock))

    Made.__name__ = Made.__qualname__ = f"Pruned{stock.__name__}"
    return Made


def headless(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class of the same model without its head."""
    assert stock.config_class is not None, "`auto_class` knows only classes that have one"
    found = MODEL_MAPPING[stock.config_class]
    first = found[0] if isinstance(found, tuple) else found
    assert first is not None, "every family has such a class"
    return first


def modeling_file(stock: type[PreTrainedModel]) -> str:
    """Return the text of a checkpoint's modelling file."""
    names = [headless(stock).__name__, stock.__name__]
    return (
        Path(modeling_pruned.__file__).read_text()
        + f"\n\nfrom transformers import {', '.join(names)}  # noqa: E402\n"
        + "".join(
            f'\n\nclass Pruned{name}(Pruned, {name}):\n    """{name} with the sizes of its config."""\n'
            for name in names
        )
    )
