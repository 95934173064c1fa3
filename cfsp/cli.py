"""The command line: `cfsp`, a Hydra app."""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from cfsp.attempts import Attempt, command, failed, sweep_name
from cfsp.build import CONF
from cfsp.overrides import understood
from cfsp.plugins import import_plugins


def main() -> None:
    """Run one job or a sweep. Exit code 1 if a job failed, 130 after Ctrl-C."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    failed.clear()
    own_launchers()
    try:
        sys.argv[1:] = understood(sys.argv[1:])
    except ValueError as error:
        print(f"cfsp: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    try:
        job()
    except KeyboardInterrupt:
        print("cfsp: interrupted; what was finished before stays", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        raise SystemExit(1)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> None:
    """Run one job; what goes wrong in it is said, kept, and no other job's matter."""
    with Attempt(cfg):
        import_plugins(cfg.plugins)
        show(cfg)


def own_launchers() -> None:
    """Let our presets be the only ones of their names: Hydra holds them to the fields of a plug-in's."""
    Plugins.instance()  # has imported the plug-ins that are installed
    presets = ConfigStore.instance().repo["hydra"]["launcher"]
    for preset in (CONF / "hydra" / "launcher").glob("*.yaml"):
        presets.pop(preset.name, None)


def show(cfg: DictConfig) -> None:
    """Show the record at a terminal, print its path alone elsewhere."""
    # Imported here so that `cfsp --help` answers at once.
    from huggingface_hub.utils import logging
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from cfsp.failures import forget
    from cfsp.push import push
    from cfsp.record import is_main, record_path
    from cfsp.run import obtain, save_folder
    from cfsp.summary import summary

    logging.set_verbosity_error()  # the error that follows its retries says all
    if not sys.stderr.isatty():
        disable_progress_bar()
    sweep = sweep_name()
    check_places(cfg, sweep)
    record, made = obtain(cfg, command(), sweep)
    if not is_main():
        return
    console = Console()
    if console.is_terminal:
        console.print(summary(record))
    if not made:
        hint = f"read, not run: the record is of {record.created}; overwrite=true runs it again"
        print(f"cfsp: {hint}", file=sys.stderr)
    if cfg.save:
        print(f"cfsp: the model is in {save_folder(cfg, record.id)}", file=sys.stderr)
    print(record_path(cfg.results, record.id), flush=True)
    if cfg.push is not None:
        print(f"cfsp: pushing it to {cfg.push}", file=sys.stderr)
        address = push(save_folder(cfg, record.id), cfg.push, cfg.private)
        forget(cfg.results, record.id)  # of an earlier push
        print(f"cfsp: the model is at {address}", file=sys.stderr)


def check_places(cfg: DictConfig, sweep: str | None) -> None:
    """Raise ValueError if the model cannot be kept where `save` and `push` say; sweep: in a job of one."""
    from cfsp.push import check_push

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
