"""Checkpoints: a pruned model as a Hugging Face folder that loads without cfsp."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.describe import describe
from cfsp.checkpoints.model_files import carried_files, has_full_length
from cfsp.checkpoints.saved_classes import MODELING_FILE, modeling_file
from cfsp.machine.process import quiet
from cfsp.model.adapters import APART, Adapters
from cfsp.model.generating_as import generating_as
from cfsp.plans.plan import PrunePlan
from cfsp.storage.atomic import clear_parts, whole_folder
from cfsp.storage.locks import LOCKLESS, holding_if_possible
from cfsp.storage.seals import file_checksum

SUMS = "SHA256SUMS"
SUMMED = ("*.safetensors", "*.json", "*.py")
SUMMED_ADAPTERS = ("adapters/*.safetensors", "adapters/*.json")


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
    """Write a pruned model to a folder that plain transformers loads, completely or not at all.

    A model whose blocks have equal sizes gets a plain config. Otherwise the config's `per_layer_config`
    holds the sizes, and the folder holds the modelling file that reads them: load the model with
    `trust_remote_code=True`, or with `cfsp.load`.

    tokenizer: None copies the files of the tokenizer and the generation config from `source`.
    card: makes the README.md; its argument is whether loading the model needs the modelling file.
    files: more text files to write: name -> text.
    adapters: a peft model around `model`. Its adapters go into the folder `adapters`, with this folder as
        their base model. The base model is written without them.
    source: the dense model's folder, from which licences, processor configs and the like are copied.

    Raises:
        ValueError: `check_target` refuses the folder, or the config cannot say what the model is.
        OSError: the disk is full or cannot be written. The folder is then unchanged.
    """
    folder = Path(folder).resolve()
    check_target(folder, overwrite)
    with alone_in(folder), whole_folder(folder) as part, quiet():
        if adapters is not None:
            model = unload(adapters, folder, part)
        has_own_code = write_model(part, model)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        carry(source, part, tokenizer is None)
        plan.decision().save(part)  # its tensors are in the weights
        readme = {} if card is None else {"README.md": card(has_own_code)}
        write_texts(part, {**(files or {}), **readme})


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files, and then the checksums of all that the folder holds."""
    for name, text in texts.items():
        (folder / name).write_text(text)
    names = summed(folder, SUMMED + SUMMED_ADAPTERS)
    sums = [f"{file_checksum(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(sums))


def unload(adapters: Adapters, folder: Path, part: Path) -> PreTrainedModel:
    """Write the adapters into `part`, which will be called `folder`; return the model without them."""
    for config in adapters.peft_config.values():
        config.base_model_name_or_path = str(folder)  # absolute: peft loads it from any directory
    adapters.save_pretrained(str(part / APART))
    return adapters.base_model.unload()


def write_model(folder: Path, model: PreTrainedModel) -> bool:
    """Write weights and configs; return whether they take the modelling file, which is written too."""
    config = describe(model)
    # transformers renames weights of its own classes when it loads them, not those of remote code.
    has_own_code = hasattr(config, "pruned")
    with generating_as(model, GenerationConfig()):  # transformers refuses to save some published ones
        model.save_pretrained(folder, max_shard_size="5GB", save_original_format=not has_own_code)
    (folder / MODELING_FILE).unlink(missing_ok=True)  # a copy from the checkpoint it was loaded from
    config.save_pretrained(folder)
    write_generation_config(folder, model)
    if has_own_code:
        (folder / MODELING_FILE).write_text(modeling_file(model))
    return has_own_code


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if a checkpoint cannot be written to the folder."""
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
    """Keep others from writing a model to the folder, and delete what killed writes left."""
    why = f"another process writes {folder}"
    with holding_if_possible(lock_of(folder), why, only=LOCKLESS) as held:
        if held:
            clear_parts(folder)
        yield


def lock_of(folder: Path) -> Path:
    """Return the path of the lock for writing a model to a folder."""
    return folder.with_name(f".{folder.name}.lock")


def write_generation_config(folder: Path, model: PreTrainedModel) -> None:
    """Write the generation config as it was given, even if some of its options have no effect."""
    if model.can_generate():
        model.generation_config.to_json_file(
            folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"]
        )


def carry(source: Path | None, folder: Path, unchanged: bool) -> None:
    """Copy the files that pruning does not change."""
    if source is None:
        return
    for path in carried_files(source, unchanged):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def summed(folder: Path, patterns: Sequence[str] = SUMMED) -> list[str]:
    """List the files that the model consists of."""
    return sorted(path.relative_to(folder).as_posix() for one in patterns for path in folder.glob(one))


def check_model(folder: Path, quick: bool = False) -> None:
    """Raise ValueError unless the folder holds a model as `save` wrote it. quick: as in `check_sums`."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no model; expected a folder that save=FOLDER wrote")
    check_sums(folder, quick)


def check_sums(folder: Path, quick: bool = False) -> None:
    """Raise ValueError if a file of a checkpoint is not as `save` wrote it.

    quick: do not read weights that have their full length and are older than the sums. A repeated sweep
        checks each of its models, and reading them all would take minutes. `load` and `push` read every
        byte, so they find flipped bits.
    """
    if not (folder / SUMS).is_file():
        return
    lines = (folder / SUMS).read_text().splitlines()
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(written.keys() | {*summed(folder)}):
        path = folder / name
        if quick and is_untouched(path):
            continue
        if name not in written or not path.is_file() or file_checksum(path) != written[name]:
            state = "not as it was saved" if path.is_file() else "missing"
            raise ValueError(f"{folder}: {name} is {state}; if that is intended, delete {SUMS}")


def is_untouched(path: Path) -> bool:
    """Return whether a file of weights has its full length and is older than the sums, written last."""
    if path.suffix != ".safetensors" or not path.is_file() or not has_full_length(path):
        return False
    return path.stat().st_mtime_ns < path.with_name(SUMS).stat().st_mtime_ns
