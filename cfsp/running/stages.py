"""Stages: the steps of a run, in order. Each adds its results to the run's state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.describe import check_saving
from cfsp.checkpoints.gguf_input import dequantised
from cfsp.checkpoints.model_files import local_folder
from cfsp.data.calibration import Batch
from cfsp.data.readings import kept_in
from cfsp.evaluation.measure import add_metrics, answers_of, measure, measure_pairs
from cfsp.loggers.base import Log
from cfsp.machine.environment import environment, git_state, now
from cfsp.machine.memory import peak_bytes
from cfsp.model.find_sites import find_sites
from cfsp.model.model_inputs import inputs_of
from cfsp.model.parameter_count import count_parameters, density
from cfsp.model.views import unit_cost
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply
from cfsp.records.outcome_file import named_outcomes
from cfsp.records.record import Metric, Record
from cfsp.recovery.base import Recovered, block_parameters, change_of
from cfsp.running.build import build
from cfsp.running.parts import Parts
from cfsp.running.run_files import RunFiles
from cfsp.schedules.base import Planned
from cfsp.storage.cache import Cache
from cfsp.training.base import Setting
from cfsp.training.lora import with_adapters


@dataclass
class State:
    """The state of a run. config: `cfg`, resolved. The stages set the fields below `seconds`."""

    cfg: DictConfig
    config: Mapping[str, Any]
    parts: Parts
    files: RunFiles
    log: Log
    seconds: dict[str, float] = field(default_factory=dict)

    model: PreTrainedModel = field(init=False)
    """Dense until surgery, then pruned, then recovered."""
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    subject: Subject = field(init=False)
    source: Path | None = field(init=False, default=None)
    """The folder that the model came from, if a saved model takes files from there."""
    prepared: Any = field(init=False)
    examples: Any = field(init=False)
    batches: Sequence[Batch] = field(init=False)
    overlaps: list[str] = field(init=False)
    sizes: dict[str, dict[str, int]] = field(init=False)
    """"dense" and "pruned" -> parameters of each base."""
    target: dict[str, Any] | None = field(init=False, default=None)
    """What the target counts, in both models, if there is one."""
    block_sizes: list[int] = field(init=False)
    unit_cost: dict[str, int] = field(init=False)
    dense: dict[str, Metric] = field(init=False)
    said: dict[str, str] = field(init=False)
    planned: Planned = field(init=False)
    original: PreTrainedModel | None = field(init=False)
    """The dense model, if something after surgery needs it."""
    recovered: Recovered = field(init=False)
    pruned: dict[str, Metric] = field(init=False)
    samples: dict[str, dict[str, str]] = field(init=False)

    def record(self) -> Record:
        """Return the record of the finished run."""
        before, after = self.sizes["dense"], self.sizes["pruned"]
        made = Record(
            id=self.log.job.id,
            created=now(),
            config=self.config,
            parameters=self.sizes,
            sparsity={base: 1 - after[base] / before[base] for base in before},
            widths={edit.site: edit.stays for edit in self.planned.plan.edits},
            unit_cost=self.unit_cost,
            notes=self.planned.plan.notes,
            metrics={"dense": self.dense, "pruned": self.pruned},
            seconds=self.seconds,
            peak_bytes=peak_bytes(self.model.device),
            git=git_state(),
            environment=environment(self.model.device),
            command=self.log.job.command,
            training=self.recovered.training,
            schedule_training=self.planned.training,
            target=self.target,
            density=density(self.model),
            samples=self.samples,
            overlaps=self.overlaps,
            dequantised=dequantised(str(self.cfg.model.path)),
            routes={edit.site: edit.routing for edit in self.planned.plan.edits if edit.routing} or None,
        )
        return named_outcomes(made)


def load(state: State) -> None:
    """Load the model and all texts; raise errors of bad input before anything costly runs."""
    cfg, parts = state.cfg, state.parts
    cache = replace(Cache.at(cfg.cache), about=parts.about(state.config["model"]))
    with kept_in(cache):
        model, tokenizer = build(cfg.model, **parts.head(cfg.model))
        model = with_adapters(model, Path(cfg.model.path))
        state.model, state.tokenizer = model, tokenizer
        sites = find_sites(model, state.config["sites"])
        state.subject = Subject(model, sites, cache, tokenizer, state.files.training, state.log.curve)
        state.prepared = parts.prepare(state.subject)  # which may take routers out
        state.sizes, state.block_sizes = {"dense": count_parameters(model, sites)}, block_parameters(model)
        state.unit_cost = {site.name: unit_cost(model, site) for site in sites}
        if (target := parts.schedule.size_target) is not None:
            state.target = target.wanted.data | {
                "kind": target.wanted.kind,
                "asked": target.wanted.amount,
                "dense": target.measure(model),
            }
        if state.files.target is not None:
            check_saving(model, sites, parts.method.allocator.round_to)
            named = Path(model.config.name_or_path or "")
            state.source = local_folder(named, cfg.model.revision) if named.parts else None
        state.examples = parts.recovery.prepare(model, tokenizer, parts.method.needs)
        state.batches = parts.calibration.batches(tokenizer, model) if parts.schedule.calibrates else []
        if state.batches:
            inputs_of(model, state.batches[0])  # raises if these are no inputs of the model
        state.overlaps = parts.overlaps(tokenizer, state.batches)


def measure_dense(state: State) -> None:
    """Measure the dense model."""
    parts, subject = state.parts, state.subject
    weights = subject.fingerprint
    state.dense = measure(
        parts.evaluators, state.model, state.tokenizer, subject.cache, weights, name="dense"
    )
    state.said = answers_of(parts.samplers, state.model, state.tokenizer)
    state.log.metrics("dense", state.dense)


def plan(state: State) -> None:
    """Decide which units to keep."""
    trains = state.parts.schedule.trains  # the same model: what needs the dense one later needs a copy now
    state.original = copy.deepcopy(state.model) if trains and state.parts.need_dense else None
    state.planned = state.parts.plan(state.subject, state.batches, state.prepared, state.examples)


def surgery(state: State) -> None:
    """Cut the model."""
    if state.original is None and state.parts.need_dense:
        state.original = copy.deepcopy(state.model)
    plan, sites = state.planned.plan, state.subject.sites  # a bridge lies at a site that was not chosen
    kinds = dict.fromkeys(
        [*(site.kind for site in sites), *(edit.kind for edit in plan.edits)]
    )  # and bridges
    apply(plan, find_sites(state.model, [*kinds]), state.model)
    sites = find_sites(state.model, state.config["sites"])
    state.sizes["pruned"] = count_parameters(state.model, sites)  # before adapters may sit inside
    if state.target is not None and (target := state.parts.schedule.size_target) is not None:
        state.target |= target.outcome(state.original, state.model, plan.notes)


def recovery(state: State) -> None:
    """Train the pruned model."""
    change = change_of(state.block_sizes, state.model, state.planned.plan)
    setting = Setting(
        state.model, state.tokenizer, change, state.files.training, state.original, state.log.curve
    )
    state.recovered = state.parts.recovery.run(setting, state.examples)
    state.model = state.recovered.model


def evaluation(state: State) -> None:
    """Measure the pruned model, and both models where evaluators need them side by side."""
    parts, model, tokenizer = state.parts, state.model, state.tokenizer
    cache = state.subject.cache
    again = state.cfg.overwrite
    state.pruned = measure(parts.evaluators, model, tokenizer, cache, again=again, name="pruned")
    pairs = measure_pairs(parts.paired, state.original, model, tokenizer)
    for found, more in zip((state.dense, state.pruned), pairs, strict=True):
        add_metrics(found, more)
    state.log.metrics("pruned", state.pruned)
    state.samples = {
        prompt: {"dense": state.said[prompt], "pruned": text}
        for prompt, text in answers_of(parts.samplers, model, tokenizer).items()
    }


STAGES: Mapping[str, Callable[[State], None]] = {
    "load": load,
    "dense evaluation": measure_dense,
    "plan": plan,
    "surgery": surgery,
    "recovery": recovery,
    "evaluation": evaluation,
}
"""A stage's name on the screen and in `Record.seconds` -> its function, in order."""
