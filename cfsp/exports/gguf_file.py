"""GGUF: one file for llama.cpp and what is built on it (Ollama, LM Studio)."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer
from cfsp.exports.base import Exporter, Saved, check_next_token
from cfsp.exports.gguf_architectures import (
    ARCHITECTURES,
    INTERLEAVED,
    architecture,
    biases_beyond,
    uneven_architecture,
)
from cfsp.exports.gguf_quantiser import OWN_TYPES, PROGRAM, find_quantiser
from cfsp.exports.gguf_tensors import GGUFTensor, LlamaLike
from cfsp.exports.rotary import add_rotary, check_rotary, rotary_factors
from cfsp.exports.vocabulary import add_vocabulary, check_vocabulary_form
from cfsp.model.families import LAYOUTS
from cfsp.model.shapes import BlockShape, Shapes
from cfsp.storage.atomic import replacing

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("f32", "f16", "bf16", "q8_0")
ORIGIN = "cfsp.export"
"""The key that says what a file was made of and how."""
BLOCK = 32
"""Numbers that q8_0 stores together."""


@dataclass(frozen=True)
class GGUF(Exporter):
    """A GGUF file: weights, sizes of every block and tokenizer, for llama.cpp without a conversion script.

    MLPs and heads get units of zeros where a width is no multiple; they change no output. Models whose blocks
    differ take an architecture with sizes per block: deci (Llama, Mistral, Qwen2, Phi-3, Granite) or openelm
    (Qwen3 with tied embeddings).

    type: of matrices; vectors stay float32. Others than f32, f16, bf16 and q8_0, such as q4_k_m, are made by
    llama.cpp's own quantiser, where it is installed. multiple: widths of MLPs are rounded up to a multiple of
    it; 256 suits K types.

    Raises:
        ValueError: llama.cpp cannot express the model or its tokenizer, or a width does not fit the type.
    """

    type: str = "f16"
    multiple: int = BLOCK

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self.type.lower())  # llama.cpp writes Q8_0
        check_type(self.type)
        check_integer("multiple", self.multiple, least=1)
        if self.type == "q8_0" and self.multiple % BLOCK:
            raise ValueError(
                f"multiple={self.multiple} beside type=q8_0: expected a multiple of {BLOCK}, as this type "
                f"stores {BLOCK} numbers together"
            )

    @property
    def ending(self) -> str:
        return f"-{self.type}.gguf"

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_package()
        check_next_token(model)
        architecture(model, wanted_shapes(model, self))
        check_rotary(model.config)
        check_vocabulary_form(tokenizer)
        hidden = Shapes.of(model).hidden
        if self.type == "q8_0" and hidden % BLOCK:
            raise ValueError(
                f"the residual width {hidden} is no multiple of {BLOCK}, which type=q8_0 stores together; "
                f"expected allocator.round_to={BLOCK} where sites has hidden, or type=f16"
            )

    def example(self, head: str) -> str:
        return "```sh\nllama-server --model FILE.gguf\n```"

    def check_uneven(self, model: PreTrainedModel) -> None:
        uneven_architecture(model, biases_beyond(model))

    def check_target(self, target: Path, overwrite: bool) -> None:
        super().check_target(target, overwrite)
        if target.is_dir():
            raise ValueError(f"{target} is a folder; expected the path of a file")

    def origin(self, target: Path) -> str | None:
        if not target.is_file():
            return None
        check_package()
        from gguf import GGUFReader

        try:
            field = GGUFReader(target).fields.get(ORIGIN)
        except (OSError, ValueError, KeyError, IndexError, UnicodeError):  # no GGUF, or a broken one
            return None
        return None if field is None else str(field.contents())

    def write(self, saved: Saved, target: Path) -> None:
        from gguf import GGUFWriter

        model, want = saved.model, wanted_shapes(saved.model, self)
        name = architecture(model, want)
        whole = LlamaLike(
            model,
            saved.shapes,
            want,
            interleaved=name in INTERLEAVED,
            fused=name == "openelm",
            shifted=name == "gemma",
        )
        tensors = [*whole.tensors(), *rotary_factors(model.config)]
        with replacing(target) as part, self.quantised(model, part) as (path, kind):
            writer = GGUFWriter(None, name)
            done = f"By `cfsp-export gguf --type {self.type}`: {described(name, want)}"
            add_general(writer, saved, done, self.example(saved.head))
            writer.add_string(ORIGIN, self.origin_of(saved.folder))
            add_sizes(writer, model, want, name)
            add_vocabulary(writer, saved.tokenizer, saved.shapes.vocabulary)
            write_gguf(writer, tensors, path, kind)

    @contextmanager
    def quantised(self, model: PreTrainedModel, part: Path) -> Iterator[tuple[Path, str]]:
        """Yield the path and the type to write; what is there then becomes the file `part` of this type."""
        quantise = None if self.type in TYPES else find_quantiser()
        if quantise is None:
            yield part, self.type
            return
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{part.name}.") as folder:
            whole = Path(folder) / "whole.gguf"
            yield whole, "bf16" if model.dtype == torch.bfloat16 else "f16"
            quantise(whole, part, self.type)


def check_type(kind: str) -> None:
    """Raise ValueError unless matrices can be written as this type here."""
    if kind in TYPES or (OWN_TYPES.fullmatch(kind) and find_quantiser() is not None):
        return
    how = ""
    if OWN_TYPES.fullmatch(kind):
        how = f", or {kind} where llama.cpp's {PROGRAM} is on PATH, or llama-cpp-python is installed"
    raise ValueError(f"type={kind!r}: expected {', '.join(TYPES)}{how}")


def check_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("export=[gguf] needs the package gguf; expected pip install 'cfsp[gguf]'")


def wanted_shapes(model: PreTrainedModel, options: GGUF) -> list[BlockShape]:
    """Return the sizes of the blocks in the file, with the units of zeros that it needs.

    llama.cpp leaves out the attention of a block whose MLP has no neuron, so it gets some. It reads the size
    of a head from the first block, so an attention that is gone there gets a head; in openelm every one does.
    """
    shapes = Shapes.of(model)
    kept = [one.heads for one in shapes.blocks]
    family = ARCHITECTURES.get(model.config.model_type)
    skips = family is not None and family.uneven == "deci"
    want = []
    for index, block in enumerate(shapes.blocks):
        one = block
        width = -(-max(one.width, 1) // options.multiple) * options.multiple
        width = max(width, BLOCK) if not one.width else width
        if not one.heads and (index == 0 or not skips or not any(kept)):
            one = replace(block, heads=1, groups=1)
        while options.type == "q8_0" and one.heads and one.heads * shapes.head_dim % BLOCK:
            groups = (one.groups or 0) + 1
            one = replace(one, heads=groups * one.heads_per_group, groups=groups)
        want.append(replace(one, width=width))
    return want


def described(name: str, want: Sequence[BlockShape]) -> str:
    """Return what a file holds, for its card."""
    widths = sorted({one.width for one in want})
    spread = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    return f"architecture {name}, MLPs of {spread} neurons; units of zeros among them change no output."


def add_general(writer: GGUFWriter, saved: Saved, done: str, example: str) -> None:
    """Write what the file is: a name, the licence, and the model's card."""
    card = saved.card(done, example)
    writer.add_name(plain_name(saved.folder.name))
    found = re.search(r"^license: *(\S+)", card, flags=re.MULTILINE)
    if found and found[1] != "unknown":
        writer.add_license(found[1])
    writer.add_description(done)
    writer.add_string("cfsp.card", card)


def plain_name(folder: str) -> str:
    """Return a name without a family's: llama.cpp treats files that are called after some families apart.

    It finds Phi-3 anywhere in a name; other families are whole words here, with or without a version.
    """
    families = (re.sub(r"_|(?<=[a-z])(?=\d)", "[-_ ]?", kind) for kind in LAYOUTS)
    named = rf"phi-?3|(?<![a-z])({'|'.join(families)})(?![a-z])"
    return "pruned" if re.search(named, folder.lower()) else folder


def add_sizes(writer: GGUFWriter, model: PreTrainedModel, want: Sequence[BlockShape], name: str) -> None:
    """Write the sizes that llama.cpp reads: one per block where the architecture takes that."""
    shapes, config = Shapes.of(model), model.config
    uneven = name in ("deci", "openelm")
    widths, heads, groups = (
        [one.width for one in want],
        [one.heads or 0 for one in want],
        [one.groups or 0 for one in want],
    )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shapes.hidden)
    writer.add_block_count(len(want))
    writer.add_feed_forward_length(widths if uneven else widths[0])
    writer.add_head_count(heads if uneven else heads[0])
    writer.add_head_count_kv(groups if uneven else groups[0])
    writer.add_key_length(shapes.head_dim)
    writer.add_value_length(shapes.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(shapes.vocabulary)
    add_rotary(writer, config, shapes.head_dim)


def write_gguf(writer: GGUFWriter, tensors: Sequence[GGUFTensor], path: Path, kind: str) -> None:
    """Write a whole file, one tensor in memory at a time."""
    import numpy as np
    from gguf import GGMLQuantizationType, LlamaFileType
    from gguf.quants import quant_shape_to_byte_shape

    kinds = {one: GGMLQuantizationType[one.upper()] for one in TYPES}
    whole = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(LlamaFileType[whole[kind]])
    writer.add_quantization_version(2)
    for one in tensors:
        stored = kinds[kind if len(one.shape) > 1 else "f32"]
        size = int(np.prod(quant_shape_to_byte_shape(one.shape, stored)))
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), size, raw_dtype=stored)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for one in tensors:
            writer.write_tensor_data(encoded(one.make(), kind if len(one.shape) > 1 else "f32"))
    finally:
        writer.close()


@torch.no_grad()
def encoded(weight: Tensor, kind: str):
    """Return the numbers of a weight as a file holds them, an array."""
    from gguf import GGMLQuantizationType, quants

    weight = weight.detach().cpu()
    if kind == "f16":
        return weight.to(torch.float16).contiguous().numpy()
    numbers = weight.float().contiguous().numpy()
    return numbers if kind == "f32" else quants.quantize(numbers, GGMLQuantizationType[kind.upper()])
