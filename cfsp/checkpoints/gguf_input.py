"""GGUF input: a file of llama.cpp as a plain model, with its numbers dequantised."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cfsp.checkpoints.gguf_tokenizer import byte_level_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFReader

MAGIC = b"GGUF"
FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How all Llama 3 stretch their angles; a file has only what comes of it."""


@dataclass(frozen=True)
class GGUFInput:
    """What a GGUF file says of its model.

    keys: all that it says. stored: type of its matrices, such as q8_0. values: how many its tensors have.
    own: what its config says and transformers does not read.
    """

    path: Path
    architecture: str
    stored: str
    values: int
    keys: Mapping[str, Any]
    own: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> GGUFInput:
        """Read the file's keys, not its weights.

        Raises ValueError if it is no GGUF file, a package is missing, or it is what transformers reads
        wrong or not at all.
        """
        path = Path(path)
        check_readable(path)
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, UnicodeError) as error:
            raise ValueError(f"model path {str(path)!r} is a broken GGUF file ({error})") from error
        keys = {name: field.contents() for name, field in reader.fields.items()}
        name = str(keys.get("general.architecture"))
        check_architecture(path, name)
        check_sizes(path, keys, name)
        kinds = [one for one in reader.tensors if one.name != FACTORS]
        matrices = {one.tensor_type.name.lower() for one in kinds if len(one.shape) > 1}
        return cls(
            path,
            name,
            ", ".join(sorted(matrices)),
            sum(int(one.n_elements) for one in kinds),
            keys,
            own_options(path, reader, keys, name),
        )

    def config(self) -> PreTrainedConfig:
        """Return the model's config: what transformers reads of it, and what it leaves out."""
        config = AutoConfig.from_pretrained(self.path.parent, gguf_file=self.path.name)
        for name, own in self.own.items():
            if hasattr(config, name):
                setattr(config, name, own)
        return config

    def as_plain(self, model: PreTrainedModel) -> None:
        """Make a model that transformers read from the file one of a plain folder.

        Raises ValueError if the file has weights that the model has not: transformers skips them.
        """
        there = sum(weight.numel() for weight in model.parameters())
        if there != self.values:
            raise ValueError(
                f"model path {str(self.path)!r} has {self.values:,} weights, and transformers makes a model "
                f"of {there:,} of it; expected a file whose weights, such as biases, it all reads"
            )
        for holder, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
            holder.__dict__.pop(name, None)
        model.__dict__["is_quantized"] = False  # the weights are plain numbers
        model.config.name_or_path = ""  # its folder holds no files of this model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the file's tokenizer. Raises ValueError if it splits a text in an unknown way."""
        if self.keys["tokenizer.ggml.model"] != "gpt2":  # pieces, which transformers reads
            return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        own = {name.removeprefix("tokenizer."): one for name, one in self.keys.items()}
        return byte_level_tokenizer(own, int(self.keys[f"{self.architecture}.context_length"]))


def is_gguf(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".gguf"


def dequantised(path: str | Path) -> str | None:
    """Return the type of the matrices of the GGUF file that a model was read from; None for a folder."""
    return GGUFInput.read(path).stored if is_gguf(path) else None


def check_readable(path: Path) -> None:
    """Raise ValueError unless the path is a GGUF file and what reads it is installed."""
    if not path.is_file():
        raise ValueError(f"model path {str(path)!r}: there is no such file; expected a GGUF file or a folder")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"model path {str(path)!r} is no GGUF file; expected one that begins with GGUF")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"model path {str(path)!r} needs the package gguf; expected pip install 'cfsp[gguf]'"
        )
    if importlib.util.find_spec("transformers.integrations.gguf") is None:
        raise ValueError(
            f"model path {str(path)!r}: transformers {transformers.__version__} does not read how a GGUF "
            "file splits a text; expected a version that does, such as 5.24"
        )


def check_architecture(path: Path, name: str) -> None:
    """Raise ValueError if transformers has no reader for this architecture, or one for uneven blocks."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = sorted(({*GGUF_SUPPORTED_ARCHITECTURES} | {*GGUF_CONFIG_ARCHS}) - {"deci"})
    if name not in known:
        raise ValueError(
            f"model path {str(path)!r} is of the architecture {name}, which transformers does not read; "
            f"expected one of {', '.join(known)}, or the folder that it was made from"
        )


def check_sizes(path: Path, keys: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if the file is a part of one, or its blocks differ."""
    if (keys.get("split.count") or 1) > 1:
        raise ValueError(
            f"model path {str(path)!r} is one part of several; expected a whole file "
            "(llama-gguf-split --merge)"
        )
    for key in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        sizes = keys.get(f"{name}.{key}")
        if isinstance(sizes, list) and len({*sizes}) > 1:
            raise ValueError(
                f"model path {str(path)!r} has blocks of different sizes ({key}), which transformers does "
                "not read; expected the folder that it was made from"
            )


def own_options(path: Path, reader: GGUFReader, keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what transformers leaves out of the config: the channels of a head, and stretched angles.

    Raises ValueError if the angles are stretched in another way than Llama 3's.
    """
    made: dict[str, Any] = {}
    channels = keys.get(f"{name}.attention.key_length")
    if channels is not None:
        made["head_dim"] = int(channels)
    scaling = keys.get(f"{name}.rope.scaling.type") or "none"
    factors = next((one.data for one in reader.tensors if one.name == FACTORS), None)
    theta = float(keys.get(f"{name}.rope.freq_base") or 10000.0)
    if scaling == "none" and factors is not None:
        given = torch.tensor(factors, dtype=torch.float32)
        made["rope_parameters"] = {"rope_type": "llama3", "rope_theta": theta, "factor": float(given.max())}
        made["rope_parameters"] |= LLAMA3
        if not is_stretched_so(given, made["rope_parameters"]):
            scaling = "one of its own"
    if scaling != "none":
        raise ValueError(
            f"model path {str(path)!r} stretches its rotary angles ({scaling}), which transformers does not "
            "read from such a file; expected one without, one of Llama 3, or the model's checkpoint"
        )
    return made


def is_stretched_so(given: torch.Tensor, rotary: dict[str, Any]) -> bool:
    """Return whether these parameters divide the angles by the given factors, of shape [head_dim / 2]."""
    config = LlamaConfig(head_dim=2 * len(given), rope_parameters=rotary, max_position_embeddings=131072)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rotary["rope_theta"] ** -(torch.arange(len(given), dtype=torch.float64) / len(given))
    return torch.allclose((plain / inverse.double()).float(), given, rtol=1e-4)
