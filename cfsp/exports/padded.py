"""Padded: a plain checkpoint of the family, in which units of zeros make all blocks equal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from cfsp.checkpoints.describe import base_config
from cfsp.checkpoints.save import write_generation_config
from cfsp.checkpoints.saved_classes import stock_class
from cfsp.checks import check_integer
from cfsp.exports.base import FolderExporter, Saved
from cfsp.exports.padding import padded_weights
from cfsp.exports.streamed import StreamedWeight, write_streamed
from cfsp.model.blocks import layout_of
from cfsp.model.shapes import BlockShape, Shapes


@dataclass(frozen=True)
class Padded(FolderExporter):
    """A checkpoint with a plain config, which every engine of the family loads without remote code.

    Neurons and heads of zeros are added to each block until it is as wide as the widest. They change no
    output. The weights take as much memory as if all blocks had the widest block's sizes.

    multiple: widths of MLPs are rounded up to a multiple of it.

    Raises:
        ValueError: pruning left a bias that the family's config cannot express.
    """

    multiple: int = 1
    ending: ClassVar[str] = "-padded"

    def __post_init__(self) -> None:
        check_integer("multiple", self.multiple, least=1)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        padded_config(model, self.multiple)

    def write(self, saved: Saved, target: Path) -> None:
        config, want = padded_config(saved.model, self.multiple)
        heads = f", {want.heads} query heads in {want.groups} key/value groups" if want.heads else ""
        done = (
            f"By `cfsp-export padded`: units of zeros give each block {want.width} neurons{heads}, so a "
            "plain config describes the model. They change no output."
        )
        with self.filling(saved, target, done) as part:
            made = on_meta(stock_class(saved.model), config)
            if saved.model.can_generate():
                made.generation_config = saved.model.generation_config
            write_streamed(part, [*padded_weights_of(saved.model, made, want)])
            config.dtype = str(saved.model.dtype).removeprefix("torch.")
            config.save_pretrained(part)
            write_generation_config(part, made)


def padded_weights_of(
    model: PreTrainedModel, made: PreTrainedModel, want: BlockShape
) -> Iterator[StreamedWeight]:
    """Yield the padded weights as a checkpoint of the family has them: under its names, tied ones once.

    made: the padded model on the meta device.
    """
    shapes, blocks = Shapes.of(model), len(Shapes.of(model).blocks)
    skipped = {*made.all_tied_weights_keys, *(made._keys_to_ignore_on_save or ())}
    state = {name: weight for name, weight in made.state_dict().items() if name not in skipped}
    for one in padded_weights(model, shapes.blocks, [want] * blocks, shapes.head_dim, state):
        (name,) = revert_weight_conversion(made, {one.name: state[one.name]})
        yield replace(one, name=name)


def padded_config(model: PreTrainedModel, multiple: int) -> tuple[PreTrainedConfig, BlockShape]:
    """Return a plain config for the padded model and the sizes of its blocks.

    Raises ValueError if the family's config can express no such model.
    """
    stock, names = stock_class(model), layout_of(model).names
    base, problem = base_config(model), ""
    for want in candidates(model, base, multiple):
        config = copy.deepcopy(base)
        for what, value in want.named().items():
            if what in names:
                setattr(config, names[what], value)
        try:
            config.validate()
            if set(Shapes.of(on_meta(stock, config)).blocks) == {want}:
                config.architectures = [stock.__name__]
                return with_biases(model, stock, config), want
        except (ValueError, StrictDataclassError) as error:
            problem = " ".join(str(error).split())
    raise ValueError(
        f"a {base.model_type} whose blocks are padded to {Shapes.of(model).widest} is none that its config "
        f"can express ({problem or 'the family fixes these sizes'}); expected another multiple, or "
        "allocator=uniform"
    )


def candidates(model: PreTrainedModel, base: PreTrainedConfig, multiple: int) -> Iterator[BlockShape]:
    """Yield the sizes to try: the widest block's, then those of the family's unpruned model.

    Some configs fix the MLP's width or the number of heads, and some want a residual width that is a
    multiple of the heads.
    """
    widest = Shapes.of(model).widest
    widest = replace(widest, width=max(1, -(-widest.width // multiple)) * multiple)
    if widest.heads == 0:
        widest = replace(widest, heads=1, groups=1)
    yield widest
    whole = Shapes.of(on_meta(stock_class(model), copy.deepcopy(base))).widest
    heads = {"heads": whole.heads, "groups": whole.groups}
    for more in (heads, {"width": whole.width}, {**heads, "width": whole.width}):
        want = replace(widest, **more)
        if widest.fits_into(want):
            yield want


def with_biases(
    model: PreTrainedModel, stock: type[PreTrainedModel], config: PreTrainedConfig
) -> PreTrainedConfig:
    """Return the config with the switches of the biases that pruning added.

    Raises ValueError that names a bias if no switch of the family gives it.
    """
    ordinary = parameter_names(stock, config)
    missing = {name for name in dict(model.named_parameters()) if name.endswith(".bias")} - ordinary
    switched = copy.deepcopy(config)
    for name, value in vars(config).items():
        if "bias" in name and value is False and missing:
            one = copy.deepcopy(config)
            setattr(one, name, True)
            if found := (parameter_names(stock, one) - ordinary) & missing:
                setattr(switched, name, True)
                missing -= found
    if missing:
        raise ValueError(
            f"{min(missing)} was added by pruning, and no switch in a config of {config.model_type} gives "
            "it; expected compensation=none, or the model as it was saved, which has its own modelling file"
        )
    return switched


def parameter_names(stock: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    """Return the names of the parameters of a model made from a config."""
    return set(dict(on_meta(stock, copy.deepcopy(config)).named_parameters()))


def on_meta(stock: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model without memory for its weights."""
    with torch.device("meta"):
        return stock(config)
