"""Checkpoints: a pruned model as a Hugging Face folder that loads without cfsp."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cfsp import modeling_pruned
from cfsp.finding import axis_length, head_channels
from cfsp.layouts import block_modules, layout_of, places_of
from cfsp.modeling_pruned import Constant, Pruned, linear_sizes
from cfsp.plans import PrunePlan

SUMS = "SHA256SUMS"
SUMMED = ("*.safetensors", "config.json", "plan.json", "modeling_pruned.py")

AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def save(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: PrunePlan,
    card: Callable[[bool], str] | None = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a pruned model to a folder that plain transformers loads, whole or not at all.

    A model whose blocks are alike gets a plain config. Otherwise the sizes go into the config's
    `per_layer_config`, and the modelling file that reads them comes along: load it with
    `trust_remote_code=True`, or with `cfsp.load`.

    card: makes the README.md, told whether the model needs its modelling file to load.
    files: more text files to put in: name -> text.

    Raises:
        ValueError: the folder holds something and `overwrite` is not given, or it holds no model;
            or the config cannot say what the model is.
        OSError: the disk is full or cannot be written. Nothing is left under the final name then.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    config = describe(model)
    with whole_folder(folder) as part, as_os_errors(folder):
        # Remote code gets none of the renamings that transformers does for its own classes.
        own_format = not hasattr(config, "pruned")
        model.save_pretrained(part, max_shard_size="5GB", save_original_format=own_format)
        config.save_pretrained(part)
        tokenizer.save_pretrained(part)
        plan.save(part)
        texts = dict(files or {})
        if hasattr(config, "pruned"):
            texts["modeling_pruned.py"] = modeling_file(stock_class(model))
        if card is not None:
            texts["README.md"] = card(hasattr(config, "pruned"))
        for name, text in texts.items():
            (part / name).write_text(text)
        sums = [f"{digest}  {name}\n" for name, digest in file_sums(part).items()]
        (part / SUMS).write_text("".join(sums))


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if a checkpoint cannot go there."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"save={str(folder)!r} is a file; expected a folder")
    if not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"save={str(folder)!r} holds something that is no model; expected an empty folder")
    if not overwrite:
        raise ValueError(
            f"save={str(folder)!r} holds a model already; expected an empty folder, or overwrite=true"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes the final name when the block ends well, and goes otherwise."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = part.with_suffix(".old")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def as_os_errors(folder: Path) -> Iterator[None]:
    """Raise as an OSError what the libraries that write the files call by other names."""
    try:
        yield
    except Exception as error:
        # tokenizers raises a bare Exception if a file cannot be written; anything finer is its own.
        if type(error) in (Exception, SafetensorError):
            raise OSError(f"{folder} could not be written: {error}") from error
        raise


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of what the model is made of, by file name."""
    sums = {}
    for path in sorted(path for pattern in SUMMED for path in folder.glob(pattern)):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def check_sums(folder: Path) -> None:
    """Raise ValueError if a file of a checkpoint is not as `save` wrote it."""
    if not (folder / SUMS).is_file():
        return
    lines = (folder / SUMS).read_text().splitlines()
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = file_sums(folder)
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            state = "missing" if name not in found else "not as it was saved"
            raise ValueError(f"{folder}: {name} is {state}; if that is meant, delete {SUMS}")


def describe(model: PreTrainedModel) -> PreTrainedConfig:
    """A config from which the model's shapes follow; a plain one if that can be.

    Raises ValueError if none does.
    """
    stock, sizes = stock_class(model), block_sizes(model)
    base = copy.deepcopy(model.config)
    base.per_layer_config = None
    for name in ("pruned", "auto_map"):
        base.__dict__.pop(name, None)
    hidden = model.get_input_embeddings().weight.shape[1]
    cut_hidden = bool(layout_of(model).norms) and hidden != base.hidden_size
    if cut_hidden or any(one.get("heads") != base.num_attention_heads for one in sizes if "heads" in one):
        base.head_dim = head_channels(base)
    if cut_hidden:
        base.hidden_size = hidden
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


def differing_blocks(
    model: PreTrainedModel, base: PreTrainedConfig, stock: type[PreTrainedModel], sizes: list[dict[str, int]]
) -> PreTrainedConfig:
    """The config of a model that needs `modeling_pruned`."""
    layout, places = layout_of(model), places_of(model)
    config = copy.deepcopy(base)
    with torch.device("meta"):
        ordinary = dict(stock(copy.deepcopy(base)).named_parameters())
    counts = [
        [*reversed_path(path), what] for place in places.values() for path, what in place.counts.items()
    ]
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
    auto = next(auto for ending, auto in AUTO_CLASSES.items() if stock.__name__.endswith(ending))
    config.architectures, config.auto_map = [name], {auto: f"modeling_pruned.{name}"}
    config.allow_global_per_layer_attribute_access = True  # some families' own checks read it
    config.per_layer_config = {
        index: {layout.names[what]: value for what, value in one.items()} for index, one in enumerate(sizes)
    }
    return config


def linears(places: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Path in a block -> the runs that its outputs and its inputs are made of."""
    table: dict[str, list[str | None]] = {}
    for kind, place in places.items():
        for path, runs in place.producers.items():
            table[path] = ["".join(runs), None]
        table[place.consumer] = [None, "n" if kind == "mlp" else "q"]
    return table


def reversed_path(path: str) -> tuple[str, str]:
    """Module and attribute of a count: "self_attn.config.x" is x of the module's config."""
    module, _, attribute = path.replace(".config.", ".config:").rpartition(".")
    return module, attribute.replace(":", ".")


def block_sizes(model: PreTrainedModel) -> list[dict[str, int]]:
    """Neurons, query heads and key/value groups of every block, as far as the family has sites for them."""
    layout, places, head_dim = layout_of(model), places_of(model), head_channels(model.config)
    sizes = []
    for path in block_modules(model):
        one: dict[str, int] = {"width": inputs_left(model, f"{path}.{places['mlp'].consumer}")}
        if "attention" in places:
            place = places["attention"]
            heads = inputs_left(model, f"{path}.{place.consumer}") // head_dim
            one["heads"] = heads
            if "groups" in layout.names:
                rows = sum(axis_length(model, f"{path}.{name}", True) for name in place.producers if heads)
                one["groups"] = (rows // head_dim - heads) // 2
        sizes.append(one)
    return sizes


def inputs_left(model: nn.Module, path: str) -> int:
    module = model.get_submodule(path)
    return 0 if isinstance(module, Constant) else linear_sizes(module)[1]


def difference(model: PreTrainedModel, kind: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    """What a model made from the config has differently: a parameter's shape, or a number in a module."""
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
    """A number that the one module holds and the other has differently; what it was built from aside."""
    for name, value in vars(module).items():
        if type(value) in (int, float) and name != "hidden_size" and getattr(made, name, value) != value:
            return name
    return None


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of transformers that the model is of, also if it was loaded from a pruned checkpoint."""
    return getattr(transformers, type(model).__name__.removeprefix("Pruned"))


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that a checkpoint's modelling file defines, made here."""
    return type(f"Pruned{stock.__name__}", (Pruned, stock), {})


def modeling_file(stock: type[PreTrainedModel]) -> str:
    """The text of a checkpoint's modelling file."""
    name = stock.__name__
    return (
        Path(modeling_pruned.__file__).read_text()
        + f"\n\nfrom transformers import {name}  # noqa: E402\n\n\n"
        + f'class Pruned{name}(Pruned, {name}):\n    """{name} with the sizes of its config."""\n'
    )
