"""Loading: a model and its tokenizer from the Hugging Face hub, a folder, or this package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from cfsp.checkpoints.gguf_input import GGUFInput, is_gguf
from cfsp.checkpoints.heads import activation_options, check_head, label_options
from cfsp.checkpoints.loaded_weights import check_keys, check_vocabulary, check_weights
from cfsp.checkpoints.model_files import check_files, check_pickled, local_folder
from cfsp.checkpoints.save import check_sums
from cfsp.checkpoints.saved_classes import auto_class, pruned_class
from cfsp.checks import check_choice
from cfsp.machine.environment import PACKAGE
from cfsp.machine.process import quiet
from cfsp.model.blocks import check_family
from cfsp.options import checked

REFERENCE = PACKAGE / "reference"
"""The embedded model: a 4 M Llama trained on Python's documentation and source."""

LIBRARY_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
"""Errors that transformers and its libraries raise for files that make no valid model."""

HEADS = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
    "sequence_to_sequence": transformers.AutoModelForSeq2SeqLM,
}


@checked
def load(
    path: Annotated[str | Path, "a folder, a GGUF file or a hub id"],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: str = "causal_lm",
    activation: str | None = None,
    labels: Sequence[str] | None = None,
    head_trained: bool | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference.

    path: a folder, a hub id, a GGUF file (it is dequantised), or "reference" for the embedded model.
    dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16". device: "cuda": this process's GPU.
    head: the model's head: causal_lm, masked_lm, sequence_classification, question_answering.
    activation: of the MLPs, for instance "relu"; None: the checkpoint's. Another one needs training.
    labels: names of a classifier's labels; None: the checkpoint's. head_trained: whether a head that the
        checkpoint lacks will be trained. True names it on stderr, False refuses it, None does neither.

    Raises:
        ValueError: no model at `path`, or one that cannot be pruned; weights that do not fit, are missing,
            quantised, NaN or infinite; another model's tokenizer; or a form that is not available.
    """
    check_form(path, head, dtype, activation)
    check_device(device := local_device(device))
    form = {"dtype": dtype, "device_map": device, "attn_implementation": attn_implementation}
    if is_gguf(path):
        return load_gguf(Path(path), head, form)
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    check_source(source := REFERENCE if str(path) == "reference" else path, **shared)
    form |= label_options(source, labels, revision) | activation_options(source, activation, revision)
    with reading_model(path), quiet(reports=head_trained is None):
        model, tokenizer, loaded = read_model(source, head, form, shared)
    check_loaded(path, local_folder(source, revision), model, tokenizer, loaded, head, head_trained)
    if labels is not None:
        set_padding(model, tokenizer)
    return model.eval(), tokenizer


def check_form(path: str | Path, head: str, dtype: str, activation: str | None) -> None:
    """Raise ValueError if a model cannot be loaded in this form."""
    check_choice("head", head, HEADS)
    check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if activation is not None and is_gguf(path):
        raise ValueError(f"model.activation={activation}: not for a GGUF file; expected a folder")


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a classifier the token of padding: a decoder classifies at the last token before it."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def load_gguf(
    path: Path, head: str, form: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer from a GGUF file. form: as for `read_model`.

    Raises ValueError as `load` does.
    """
    if head != "causal_lm":
        raise ValueError(f"model path {str(path)!r}: a GGUF file has head=causal_lm, not {head}")
    read = GGUFInput.read(path)
    checks = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with reading_model(path), quiet(reports=False):
        config = read.config()
        check_family(config)
        model, loaded = HEADS[head].from_pretrained(
            path.parent, gguf_file=path.name, config=config, **checks, **form
        )
    check_keys(path, loaded, head)
    read.as_plain(model)
    check_weights(path, model)
    tokenizer = read.tokenizer()
    check_vocabulary(path, model, tokenizer)
    return model.eval(), tokenizer


def read_model(
    source: str | Path, head: str, form: Mapping[str, Any], shared: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Read a model and its tokenizer. -> both, and transformers' lists of weights that do not fit

    form: options for the model alone. shared: options for the tokenizer too.
    """
    model, loaded = loader(source, head, shared["revision"]).from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **form, **shared
    )
    return model, AutoTokenizer.from_pretrained(source, **shared), loaded


def check_loaded(
    path: str | Path,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: Mapping[str, Any],
    head: str,
    head_trained: bool | None,
) -> None:
    """Raise ValueError if the model's files, its weights or its tokenizer do not fit. folder: the files."""
    check_files(folder)  # the hub's files are local now
    check_pickled(folder)
    check_keys(path, loaded, head)  # reports mismatched sizes too
    check_head(path, loaded["missing_keys"], head_trained)
    check_weights(path, model)
    check_vocabulary(path, model, tokenizer)


@contextmanager
def reading_model(path: str | Path) -> Iterator[None]:
    """Raise a ValueError for any error of the libraries when they cannot read a model."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        is_here = str(path) == "reference" or Path(path).exists()
        where = "" if is_here else "there is no such folder; the hub: "
        raise ValueError(
            f"model path {str(path)!r} cannot be loaded ({where}{first_line(error)}); expected a folder "
            "with a config.json, weights and a tokenizer, or a hub id that can be reached"
        ) from error


def check_source(source: str | Path, revision: str | None, trust_remote_code: bool) -> None:
    """Raise ValueError, before the weights are read, if the model cannot be pruned."""
    if Path(source).is_dir():
        check_files(Path(source))
        check_sums(Path(source))
    with reading_model(source):
        adapter = find_adapter_config_file(str(source), revision=revision)
    if adapter is not None:
        raise ValueError(
            f"model path {str(source)!r} holds an adapter of peft (adapter_config.json), which is loaded "
            "too; expected it merged (merge_and_unload, then save_pretrained), or a folder without it"
        )
    with reading_model(source):
        written, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    check_heads(source, written)
    with reading_model(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    check_family(config)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model path {str(source)!r} is quantised (quantization_config in its config.json); expected "
            "weights in floating point"
        )


def check_heads(source: str | Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError if the counts of heads in a config.json are impossible. transformers checks types."""
    for name in ("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim"):
        if isinstance(config.get(name), int) and config[name] < 1:
            raise ValueError(
                f"model path {str(source)!r}: config.json has {name}={config[name]}; expected 1 or more"
            )
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ValueError(
            f"model path {str(source)!r}: config.json has num_attention_heads={heads} and "
            f"num_key_value_heads={groups}; expected a multiple of the key/value heads"
        )


def loader(source: str | Path, head: str, revision: str | None) -> type:
    """Return the class that loads the model: an auto class, or the class of a checkpoint that `cfsp` saved.

    The latter is made from the installed package: no code of the checkpoint runs.

    Raises:
        ValueError: such a checkpoint has another head.
    """
    config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    if "pruned" not in config:
        return HEADS[head]
    stock = config["pruned"].get("stock")
    if not hasattr(transformers, str(stock)) or auto_class(str(stock)) != HEADS[head].__name__:
        raise ValueError(f"the checkpoint is of a {stock}, which is no {head}")
    return pruned_class(getattr(transformers, stock))


def local_device(device: str) -> str:
    """Return the device of this process. With torchrun each process on a machine has its own GPU."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if device == "cuda" and number is not None else device


def check_device(device: str) -> None:
    """Raise ValueError if torch cannot use the device here; there is no silent fall-back."""
    try:
        torch.zeros(1, device=device).item()  # fails on the meta device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r}: torch {torch.__version__} cannot use it here ({first_line(error)}); "
            "expected cpu, or cuda where there is a GPU"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of an invalid config, that of its cause."""
    told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return (str(told).strip().splitlines() or [type(told).__name__])[0][:150]
