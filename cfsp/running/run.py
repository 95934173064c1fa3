"""Run: one experiment, from config to record."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from transformers import set_seed

from cfsp.bars import begin
from cfsp.checkpoints.card import base_license, model_card
from cfsp.checkpoints.load import check_device, local_device
from cfsp.checkpoints.save import check_target, save
from cfsp.loggers.base import Job, Log
from cfsp.machine.environment import is_main
from cfsp.machine.memory import reset_peak
from cfsp.machine.process import left_as_found
from cfsp.records.identity import run_id
from cfsp.records.record import Record, make_folder
from cfsp.running.config import check_config
from cfsp.running.parts import Parts
from cfsp.running.plain import plain
from cfsp.running.plugins import import_plugins
from cfsp.running.run_exports import check_exports, export_model, exports
from cfsp.running.run_files import RECORD, RunFiles
from cfsp.running.stages import STAGES, State
from cfsp.statistics.collect import check_needs


def run(cfg: DictConfig, command: str | None = None, sweep: str | None = None) -> Record:
    """Prune a model and measure it before and after, or return the stored record of a finished run.

    The seed makes the run repeatable. The caller's random state, settings and W&B run are restored.

    `push` is ignored here: the commands `cfsp` and `cfsp-push` push a model.

    command: what the user typed, for the record and the saved model's card. sweep: what loggers group
    this run under.

    Raises:
        ValueError, KeyError: a component rejects its input; no record is written then.
    """
    with left_as_found():
        return obtain(cfg, command, sweep)[0]


def obtain(
    cfg: DictConfig,
    command: str | None,
    sweep: str | None,
    storing: AbstractContextManager[None] | None = None,
) -> tuple[Record, bool]:
    """Return what `run` does, and whether the record was made now rather than read.

    If two processes want the same run, one makes it; the other waits, then reads it. Unlike `run`, this
    does not restore the state of the process: commands have a process of their own.

    storing: a context of the caller that sees an error while the run is still locked.
    """
    config = plain(cfg, resolve=True, throw_on_missing=True)
    import_plugins(config.get("plugins", []))  # what they define, the config may name
    check_config(config, plain(cfg))
    if not cfg.results:
        raise ValueError(f"results={cfg.results!r}: expected a folder that can be written")
    name = run_id(config)
    files = RunFiles.of(Path(cfg.results), name, save_folder(cfg, name))
    check_exports(cfg)
    found = None if cfg.overwrite else files.finished()
    if found is not None and files.settled():
        export_model(cfg, files, made=False)
        return found, False
    make_folder(cfg.results)
    with files.alone(), storing or nullcontext():
        found = None if cfg.overwrite else files.settle()
        new = found is None
        if found is None:
            found = make(cfg, files, Job(name, config, Path(cfg.results), command, sweep))
        export_model(cfg, files, made=new)
    return found, new


def make(cfg: DictConfig, files: RunFiles, job: Job) -> Record:
    """Make the record of a locked run."""
    if files.target is not None:
        check_target(files.target, files.may_replace(cfg.overwrite))
        for exporter, path in exports(cfg, files.target):
            exporter.check_target(path, files.may_replace(cfg.overwrite))
    set_seed(cfg.seed)
    check_device(local_device(cfg.device))
    reset_peak(local_device(cfg.device))
    parts = Parts.of(cfg)
    check_needs(parts.method.needs)  # a statistic that is not known would fail after the dense evaluation
    if parts.recovery.keeps_apart and files.target is None:
        raise ValueError(
            "recovery.parameters.merge=false keeps adapters beside a saved model; expected save=true, "
            "save=FOLDER or merge=true"
        )
    with Log(parts.loggers, job) as log:
        made = prune(State(cfg, job.config, parts, files, log))
    if is_main():
        files.tidy()
    return made


def prune(state: State) -> Record:
    """Run all stages; write the record and, if asked for, the model."""
    for name, stage in STAGES.items():
        if name != "recovery" or state.parts.recovery.trains:
            begin(name)
        start = time.perf_counter()
        stage(state)
        state.seconds[name] = round(time.perf_counter() - start, 3)
    outcome = state.record()
    if is_main():
        state.files.keep(outcome, partial(save_model, state, outcome))
        state.log.finish(outcome)
    return outcome


def save_model(state: State, outcome: Record) -> None:
    """Write the model with its record and its card."""
    assert state.files.target is not None, "it is asked for only where there is one"
    save(
        state.files.target,
        state.model,
        None if state.source else state.tokenizer,
        state.planned.plan,
        partial(model_card, outcome, license=base_license(str(state.cfg.model.path))),
        {RECORD: outcome.text()},
        state.files.may_replace(state.cfg.overwrite),
        state.recovered.adapters,
        state.source,
    )


def save_folder(cfg: DictConfig, run_id: str) -> Path | None:
    """Return the folder for the pruned model, None if it is not saved. Raises ValueError for save=""."""
    if cfg.save is False:
        return None
    if cfg.save is True:
        return Path(cfg.results) / "models" / run_id
    if not cfg.save:
        raise ValueError(f"save={cfg.save!r}: expected false, true (results/models/<id>) or a folder")
    return Path(cfg.save)
