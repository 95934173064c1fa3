"""The command line: `cfsp`, a Hydra app."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from yaml import YAMLError

from cfsp.bars import lines
from cfsp.cli.catalogue import describe_choice, list_choices
from cfsp.cli.overrides import is_routed, understood, without_flag
from cfsp.cli.typos import check, show_configs
from cfsp.running.attempts import Attempt, command, sweep_name
from cfsp.running.build import CONF
from cfsp.running.plugins import look_here
from cfsp.running.sweeps import Outcome

COMMANDS = ("help", "list", "describe")
"""Words that `cfsp` takes in place of overrides."""


def main() -> None:
    """Run one job or a sweep, or answer a question. Exit code 1 if a job failed, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    try:
        if answer(arguments):
            return
    except (ValueError, OSError, ImportError, YAMLError) as error:
        print(f"cfsp: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    own_launchers()
    try:
        sys.argv[1:] = understood(arguments)
        check(sys.argv[1:])
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        print(f"cfsp: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    try:
        with lines():
            job()
    except KeyboardInterrupt:
        print("cfsp: interrupted; what was finished before stays", file=sys.stderr)
        raise SystemExit(130) from None


def answer(arguments: list[str]) -> bool:
    """Answer `cfsp list`, `cfsp describe` and `cfsp --help GROUP`. -> whether it was any of these"""
    rest, config_dir = without_flag(arguments, ("--config-dir", "-cd"))
    own = [] if config_dir is None else ["--config-dir", config_dir]
    words = [argument for argument in rest if argument not in ("-h", "--help")]
    asked = len(words) < len(rest)
    if rest[:1] == ["describe"]:
        describe_choice([*rest[1:], *own])
    elif rest[:1] == ["list"]:
        list_choices([*rest[1:], *own])
    elif words and "=" in words[0] and asked:
        describe_choice([words[0], *own])
    elif words and re.fullmatch(r"[a-z_/]+", words[0]) and words[0] not in COMMANDS and asked:
        list_choices([*words, *own])
    elif {"-m", "--multirun"} & {*arguments} and any(re.match(r"(--cfg|-c)(=|$)", one) for one in arguments):
        show_configs(arguments)
    else:
        if words in ([one] for one in COMMANDS):
            sys.argv[1:] = ["--help"]
        return False
    return True


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> Outcome:
    """Run one job; report and store its failure without stopping the sweep."""
    with Attempt(cfg) as attempt:
        look_here()
        attempt.outcome = run_and_show(cfg, attempt)
    if attempt.outcome.state == "failed" and sweep_name() is None:
        raise SystemExit(1)
    return attempt.outcome


def own_launchers() -> None:
    """Delete plug-ins' presets that have the names of ours: Hydra would allow ours only their fields."""
    Plugins.instance()  # imports the installed plug-ins
    presets = ConfigStore.instance().repo["hydra"]["launcher"]
    for preset in (CONF / "hydra" / "launcher").glob("*.yaml"):
        presets.pop(preset.name, None)


def run_and_show(cfg: DictConfig, attempt: Attempt) -> Outcome:
    """Make or read the record. A single job prints it; in a sweep the launcher prints all outcomes."""
    # Imported here so that `cfsp --help` answers at once.
    from huggingface_hub.utils import logging
    from transformers.utils.logging import disable_progress_bar

    from cfsp.checkpoints.push import push
    from cfsp.machine.environment import is_main
    from cfsp.machine.process import quiet
    from cfsp.records.failures import forget
    from cfsp.records.record import record_path
    from cfsp.running.run import obtain, save_folder
    from cfsp.running.summary import outcome_of, show_record

    logging.set_verbosity_error()  # the error after its retries says enough
    disable_progress_bar()  # weights load in seconds, and finished bars stay on the screen
    sweep = sweep_name()
    check_places(cfg, sweep)
    with quiet():
        record, made = obtain(cfg, command(), sweep, attempt.storing())
    path = record_path(cfg.results, record.id)
    if is_main() and sweep is None:
        show_record(record)
        if not made:
            hint = f"read, not run: the record is of {record.created}; overwrite=true runs it again"
            print(f"cfsp: {hint}", file=sys.stderr)
        print(f"The record of this run, with its config and all figures:\n{path}", flush=True)
    if is_main() and cfg.save:
        folder = save_folder(cfg, record.id)
        print(f"cfsp: the model is in {folder}{how_to_load(folder)}", file=sys.stderr)
    if is_main() and cfg.push is not None and (folder := save_folder(cfg, record.id)) is not None:
        print(f"cfsp: pushing it to {cfg.push}", file=sys.stderr)
        address = push(folder, cfg.push, cfg.private)
        forget(cfg.results, record.id)  # the failure of an earlier push
        print(f"cfsp: the model is at {address}", file=sys.stderr)
    return outcome_of(record, path, made)


def how_to_load(folder: Path | None) -> str:
    """Return what loading a saved model takes besides its folder; nothing if plain transformers can."""
    from cfsp.checkpoints.saved_classes import MODELING_FILE

    if folder is None or not (folder / MODELING_FILE).is_file():
        return ""
    if is_routed(folder):
        return "; its MLPs are routed: without trust_remote_code=True it loads as a dense model"
    return "; its blocks differ, so load it with trust_remote_code=True"


def check_places(cfg: DictConfig, sweep: str | None) -> None:
    """Raise ValueError if the model cannot go where `save` and `push` say. sweep: its name, if any."""
    from cfsp.checkpoints.push import check_push

    if sweep is not None and isinstance(cfg.save, str):
        raise ValueError(f"save={cfg.save!r} is one folder for all jobs of a sweep; expected save=true")
    if cfg.push is None:
        return
    check_push(cfg.push, cfg.private)
    if cfg.save is False:
        raise ValueError(f"push={cfg.push!r} pushes what is saved; expected save=true or save=FOLDER")
    if sweep is not None:
        raise ValueError(
            f"push={cfg.push!r} is one repository for all jobs of a sweep; expected push=null, and later "
            "cfsp-push results/models/ID owner/name"
        )


if __name__ == "__main__":
    main()
