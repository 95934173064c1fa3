"""Run: one experiment, from config to record."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import set_seed

from cfsp import record
from cfsp.bars import begin
from cfsp.build import build
from cfsp.cache import Cache
from cfsp.cards import base_license, model_card
from cfsp.checkpoints import check_target, save
from cfsp.config import check_config
from cfsp.description import check_saving
from cfsp.finding import find_sites
from cfsp.loading import check_device, local_device
from cfsp.loggers.base import Job, Log
from cfsp.measuring import join, measure, measure_pairs, say
from cfsp.model_files import local_folder
from cfsp.parts import Parts
from cfsp.plugins import import_plugins
from cfsp.process import left_as_found
from cfsp.readings import kept_in
from cfsp.record import Record
from cfsp.recovery.base import Setting, block_parameters, change_of
from cfsp.run_files import RECORD, RunFiles
from cfsp.schedules.base import parameters
from cfsp.surgery import apply


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


def obtain(
    cfg: DictConfig,
    command: str | None,
    sweep: str | None,
    storing: AbstractContextManager[None] | None = None,
) -> tuple[Record, bool]:
    """What `run` returns, and whether it was made now rather than read.

    Of two processes that want the same run one makes it; the other waits, then reads it.

    storing: what the caller does about an error while the run is still held.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    import_plugins(config.get("plugins", []))  # what they define, the config may name
    check_config(config, OmegaConf.to_container(cfg))
    if not cfg.results:
        raise ValueError(f"results={cfg.results!r}: expected a folder that can be written")
    run_id = record.run_id(config)
    files = RunFiles.of(Path(cfg.results), run_id, save_folder(cfg, run_id))
    found = None if cfg.overwrite else files.finished()
    if found is not None and files.settled():
        return found, False
    record.make_folder(cfg.results)
    with files.alone(), storing or nullcontext():
        found = None if cfg.overwrite else files.settle()
        if found is not None:
            return found, False
        made = make(cfg, files, Job(run_id, config, Path(cfg.results), command, sweep))
    return made, True


def make(cfg: DictConfig, files: RunFiles, job: Job) -> Record:
    """Make the record of a run that is held."""
    if files.target is not None:
        check_target(files.target, files.may_replace(cfg.overwrite))
    set_seed(cfg.seed)
    check_device(local_device(cfg.device))
    record.reset_peak(local_device(cfg.device))
    parts = Parts.of(cfg)
    if parts.recovery.keeps_apart and files.target is None:
        raise ValueError(
            "recovery.parameters.merge=false keeps adapters beside a saved model; expected save=true, "
            "save=FOLDER or merge=true"
        )
    with Log(parts.loggers, job) as log:
        made = prune(cfg, job.config, parts, files, log)
    if record.is_main():
        files.tidy()
    return made


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
        created=record.now(),
        config=config,
        parameters={"dense": before, "pruned": after},
        sparsity={base: 1 - after[base] / before[base] for base in before},
        widths={cut.site: [cut.units, len(cut.keep)] for cut in plan.edits},
        unit_cost=cost,
        notes=plan.notes,
        metrics={"dense": dense, "pruned": pruned},
        seconds=clock.seconds,
        peak_bytes=record.peak_bytes(model.device),
        git=record.git_state(),
        environment=record.environment(model.device),
        command=log.job.command,
        training=recovered.training,
        samples=samples,
        overlaps=shared,
    )
    if not record.is_main():
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
