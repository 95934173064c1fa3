"""Loading: a model and its tokenizer from the Hugging Face hub, a folder, or this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from cfsp.checkpoints import check_sums
from cfsp.checks import check_choice
from cfsp.description import auto_class, pruned_class
from cfsp.options import checked

REFERENCE = Path(__file__).parent / "reference"
"""The embedded model: a 4 M Llama trained on Python's documentation and source."""

HEADS = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
}


@checked
def load(
    path: Annotated[str | Path, "a folder or a hub id"],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: str = "causal_lm",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference.

    path: a folder, a hub id, or "reference" for the embedded model.
    dtype: "auto" (what the checkpoint asks for), "float32", "bfloat16" or "float16".
    device: "cuda" is the GPU of this process, if there are several.
    head: what the model ends in: causal_lm, masked_lm, sequence_classification, question_answering.

    Raises:
        ValueError: no model at `path`, one whose weights do not fit or are missing, or dtype,
            device, head or attention implementation is not to be had.
    """
    check_choice("head", head, HEADS)
    check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    device = local_device(device)
    check_device(device)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    source = REFERENCE if str(path) == "reference" else path
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        model, loaded = loader(source, head, revision).from_pretrained(
            source,
            dtype=dtype,
            device_map=device,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **shared,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"model path {str(path)!r} cannot be loaded ({first_line(error)}); expected a folder with a "
            "config.json, weights and a tokenizer, or a hub id that can be reached"
        ) from error
    check_keys(path, loaded, head)
    return model.eval(), tokenizer


def loader(source: str | Path, head: str, revision: str | None) -> type:
    """What can load it: an auto class, or the class of a checkpoint that `cfsp` saved.

    The latter is made from the installed package: no code of the checkpoint runs.

    Raises:
        ValueError: a file of such a checkpoint is not as it was saved, or it ends in another head.
    """
    if Path(source).is_dir():
        check_sums(Path(source))
    config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    if "pruned" not in config:
        return HEADS[head]
    stock = config["pruned"].get("stock")
    if not hasattr(transformers, str(stock)) or auto_class(str(stock)) != HEADS[head].__name__:
        raise ValueError(f"the checkpoint is of a {stock}, which is no {head}")
    return pruned_class(getattr(transformers, stock))


def check_keys(path: str | Path, loaded: Mapping[str, Any], head: str) -> None:
    """Raise ValueError if a language model lacks weights, or a causal one's checkpoint has others too.

    A head for a task may be new, and one of pretraining may stay behind.
    """
    missing, unexpected = sorted(loaded["missing_keys"]), sorted(loaded["unexpected_keys"])
    if missing and head in ("causal_lm", "masked_lm"):
        raise ValueError(
            f"model path {str(path)!r}: {len(missing)} weights are missing and would be random, such as "
            f"{missing[0]}; expected a whole checkpoint of a {head}"
        )
    if unexpected and head == "causal_lm":
        raise ValueError(
            f"model path {str(path)!r}: {len(unexpected)} weights belong to no module, such as "
            f"{unexpected[0]}; expected a checkpoint of the model that config.json describes"
        )


def local_device(device: str) -> str:
    """The device of this process: of several on a machine (torchrun) each has a GPU of its own."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if device == "cuda" and number is not None else device


def check_device(device: str) -> None:
    """Raise ValueError if torch cannot use the device here; there is no silent fall-back."""
    try:
        torch.zeros(1, device=device).item()  # which the meta device has not
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r}: torch {torch.__version__} cannot use it here ({first_line(error)}); "
            "expected cpu, or cuda where there is a GPU"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
