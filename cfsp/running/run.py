"""Run: one experiment, from config to record."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import set_seed

from cfsp.bars import begin
from cfsp.checkpoints.card import base_license, model_card
from cfsp.checkpoints.describe import check_saving
from cfsp.checkpoints.load import check_device, local_device
from cfsp.checkpoints.model_files import local_folder
from cfsp.checkpoints.save import check_target, save
from cfsp.data.readings import kept_in
from cfsp.evaluation.measure import join, measure, measure_pairs, say
from cfsp.loggers.base import Job, Log
from cfsp.machine.environment import environment, git_state, is_main, now
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.machine.process import left_as_found
from cfsp.model.find_sites import find_sites
from cfsp.plans.surgery import apply
from cfsp.records.identity import run_id
from cfsp.records.record import Record, make_folder
from cfsp.recovery.base import Setting, block_parameters, change_of
from cfsp.running.build import build
from cfsp.running.config import check_config
from cfsp.running.parts import Parts
from cfsp.running.plugins import import_plugins
from cfsp.running.run_files import RECORD, RunFiles
from cfsp.schedules.partial import parameters
from cfsp.storage.cache import Cache


def run(cfg: DictConfig, command: str | None = None, sweep: str | None = None) -> Record:
    """Prune a model and measure it before and after; a run that is finished is read, not repeated.

    The seed fixes everything in it; the caller's random numbers, settings and W&B run go on as if it had
    not been.

    A model is pushed by `cfsp` and by `cfsp-push`, not from here: `push` is left to the caller.

    command: what the user typed, for the record and the saved model's card. sweep: what loggers group
    this run under.

    Raises:
        ValueError, KeyError: what a component found wrong with its input; no record is written then.
    """
    with left_as_found():
        return obtain(cfg, command, sweep)[0]


def obtain(cfg: DictConfig, command: str | None, sweep: str | None) -> tuple[Record, bool]:
    """What `run` returns, and whether it was made now rather than read.

    Of two processes that want the same run one makes it; the other waits, then reads it.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    import_plugins(config.get("plugins", []))  # what they define, the config may name
    check_config(config, OmegaConf.to_container(cfg))
    if not cfg.results:
        raise ValueError(f"results={cfg.results!r}: expected a folder that can be written")
    name = run_id(config)
    files = RunFiles.of(Path(cfg.results), name, save_folder(cfg, name))
    found = None if cfg.overwrite else files.finished()
    if found is not None and files.settled():
        return found, False
    make_folder(cfg.results)
    with files.alone():
        found = None if cfg.overwrite else files.read()
        if found is not None:
            return found, False
        if files.target is not None:
            check_target(files.target, files.may_replace(cfg.overwrite))
        set_seed(cfg.seed)
        check_device(local_device(cfg.device))
        reset_peak(local_device(cfg.device))
        parts = Parts.of(cfg)
        if parts.recovery.keeps_apart and files.target is None:
            raise ValueError(
                "recovery.parameters.merge=false keeps adapters beside a saved model; expected save=true, "
                "save=FOLDER or merge=true"
            )
        with Log(parts.loggers, Job(name, config, Path(cfg.results), command, sweep)) as log:
            made = prune(cfg, config, parts, files, log)
        if is_main():
            files.tidy()
    return made, True


def prune(cfg: DictConfig, config: Mapping[str, Any], parts: Parts, files: RunFiles, log: Log) -> Record:
    """Calibrate, plan, cut, recover, measure, write. config: cfg, resolved."""
    training, cache = files.training, Cache.at(cfg.cache)
    clock = Stopwatch()
    with clock("load"), kept_in(cache):
        model, tokenizer = build(cfg.model)
        sites = find_sites(model, config["sites"])
        before, sizes = parameters(model, sites), block_parameters(model)
        cost = parts.check(model, tokenizer, sites)
        if files.target is not None:
            check_saving(model, sites, parts.allocator.round_to)
            source = Path(model.config.name_or_path)
            source = local_folder(source, cfg.model.revision) if source.parts else None
        examples = parts.recovery.prepare(model, tokenizer, parts.needs)
        batches = parts.calibration.batches(tokenizer)
        shared = parts.overlaps()
    with clock("dense evaluation"):
        dense = measure(parts.evaluators, model, tokenizer, cache)
        said = say(parts.samplers, model, tokenizer)
        log.metrics("dense", dense)
    with clock("plan"):
        about = parts.about(config["model"])
        plan = parts.plan(model, sites, batches, examples, training, replace(cache, about=about))
    with clock("surgery"):
        original = copy.deepcopy(model) if parts.need_dense else None
        apply(plan, sites, model)
        after = parameters(model, find_sites(model, config["sites"]))  # before adapters may sit inside
    with clock("recovery"):
        change = change_of(sizes, model, plan)
        setting = Setting(model, tokenizer, change, training, original, log.curve)
        recovered = parts.recovery.run(setting, examples)
        model = recovered.model
    with clock("evaluation"):
        pruned = measure(parts.evaluators, model, tokenizer, cache, again=cfg.overwrite)
        pairs = measure_pairs(parts.paired, original, model, tokenizer)
        for found, more in zip((dense, pruned), pairs, strict=True):
            join(found, more)
        log.metrics("pruned", pruned)
        samples = {
            prompt: {"dense": said[prompt], "pruned": text}
            for prompt, text in say(parts.samplers, model, tokenizer).items()
        }
    outcome = Record(
        id=log.job.id,
        created=now(),
        config=config,
        parameters={"dense": before, "pruned": after},
        sparsity={base: 1 - after[base] / before[base] for base in before},
        widths={cut.site: [cut.units, len(cut.keep)] for cut in plan.edits},
        unit_cost=cost,
        notes=plan.notes,
        metrics={"dense": dense, "pruned": pruned},
        seconds=clock.seconds,
        peak_bytes=peak_bytes(model.device),
        git=git_state(),
        environment=environment(model.device),
        command=log.job.command,
        training=recovered.training,
        samples=samples,
        overlaps=shared,
    )
    if not is_main():
        return outcome

    def save_model() -> None:
        card = partial(model_card, outcome, license=base_license(str(cfg.model.path)))
        texts, over = {RECORD: outcome.text()}, files.may_replace(cfg.overwrite)
        own = None if source else tokenizer
        save(files.target, model, own, plan, card, texts, over, recovered.adapters, source)

    files.keep(outcome, save_model)
    log.finish(outcome)
    return outcome


def save_folder(cfg: DictConfig, run_id: str) -> Path | None:
    """Where the pruned model goes, if it is to be kept. Raises ValueError if `save` is no such place."""
    if cfg.save is False:
        return None
    if cfg.save is True:
        return Path(cfg.results) / "models" / run_id
    if not cfg.save:
        raise ValueError(f"save={cfg.save!r}: expected false, true (results/models/<id>) or a folder")
    return Path(cfg.save)


class Stopwatch:
    """Seconds per named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        begin(stage)
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
