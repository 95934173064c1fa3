"""Checkpoints: a pruned model as a Hugging Face folder that loads without cfsp."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.describe import MODELING_FILE, describe, modeling_file, stock_class
from cfsp.checkpoints.model_files import carried_files
from cfsp.machine.process import quiet
from cfsp.model.adapters import Adapters
from cfsp.plans.plan import PrunePlan
from cfsp.storage.atomic import clear_parts, whole_folder
from cfsp.storage.locks import LOCKLESS, holding_if_possible

SUMS = "SHA256SUMS"
SUMMED = ("*.safetensors", "*.json", "*.py")


def save(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: PrunePlan,
    card: Callable[[bool], str] | None = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    adapters: Adapters | None = None,
    source: Path | None = None,
) -> None:
    """Write a pruned model to a folder that plain transformers loads, whole or not at all.

    A model whose blocks are alike gets a plain config. Otherwise the sizes go into the config's
    `per_layer_config`, and the modelling file that reads them comes along: load it with
    `trust_remote_code=True`, or with `cfsp.load`.

    tokenizer: None takes its files, and how to decode, from `source` as they are.
    card: makes the README.md, told whether the model needs its modelling file to load.
    files: more text files to put in: name -> text.
    adapters: a peft model around `model`, whose adapters go into the folder `adapters`, and name this
        folder as what they sit on; that is then written without them.
    source: the dense model's folder, from which licences, processors and the like come along.

    Raises:
        ValueError: the folder holds something and `overwrite` is not given, or it holds no model;
            or the config cannot say what the model is.
        OSError: the disk is full or cannot be written. Nothing is left under the final name then.
    """
    folder = Path(folder).resolve()
    check_target(folder, overwrite)
    with alone_in(folder), whole_folder(folder) as part, quiet():
        if adapters is not None:
            for config in adapters.peft_config.values():
                config.base_model_name_or_path = str(folder)  # peft takes a relative path from where it runs
            adapters.save_pretrained(str(part / "adapters"))
            model = adapters.base_model.unload()
        config = describe(model)
        # Remote code gets none of the renamings that transformers does for its own classes.
        own_format = not hasattr(config, "pruned")
        with generation_config_aside(model):
            model.save_pretrained(part, max_shard_size="5GB", save_original_format=own_format)
        (part / MODELING_FILE).unlink(missing_ok=True)  # of what it was loaded from
        config.save_pretrained(part)
        write_generation_config(part, model)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        carry(source, part, tokenizer is None)
        plan.decision().save(part)  # its tensors are in the weights
        texts = dict(files or {})
        if hasattr(config, "pruned"):
            texts[MODELING_FILE] = modeling_file(stock_class(model))
        if card is not None:
            texts["README.md"] = card(hasattr(config, "pruned"))
        for name, text in texts.items():
            (part / name).write_text(text)
        sums = [f"{digest}  {name}\n" for name, digest in file_sums(part).items()]
        (part / SUMS).write_text("".join(sums))


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if a checkpoint cannot go there."""
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"save={str(folder)!r}: expected a folder that can be written")
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
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others from writing a model there, and clear away what killed ones left of theirs."""
    why = f"another process writes {folder}"
    with holding_if_possible(lock_of(folder), why, only=LOCKLESS) as held:
        if held:
            clear_parts(folder)
        yield


def lock_of(folder: Path) -> Path:
    """The lock of who writes a model to a folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def generation_config_aside(model: PreTrainedModel) -> Iterator[None]:
    """Let a model be written whose generation config transformers would refuse, as some are published."""
    given = getattr(model, "generation_config", None)
    if given is not None:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        if given is not None:
            model.generation_config = given


def write_generation_config(folder: Path, model: PreTrainedModel) -> None:
    """Write how the model decodes as it was given, whether or not some of it has no effect."""
    if model.can_generate():
        model.generation_config.to_json_file(
            folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"]
        )


def carry(source: Path | None, folder: Path, unchanged: bool) -> None:
    """Copy the files that no pruning changes."""
    if source is None:
        return
    for path in carried_files(source, unchanged):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


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
