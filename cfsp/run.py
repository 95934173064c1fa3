"""Run: one experiment, from config to record."""

from __future__ import annotations

import copy
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from cfsp import record
from cfsp.allocators.base import Allocator
from cfsp.build import build
from cfsp.calibration import Batch, RandomWindows
from cfsp.cards import base_license, model_card
from cfsp.checkpoints import check_target, save
from cfsp.checks import check_bool, check_integer
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.description import check_hidden
from cfsp.evaluation.base import Evaluator
from cfsp.finding import find_sites
from cfsp.layouts import check_positions
from cfsp.loading import check_device, fingerprint
from cfsp.plans import PrunePlan
from cfsp.record import Metric, Record
from cfsp.recovery.base import Recovery, Setting, block_parameters, change_of
from cfsp.recovery.none import NoRecovery
from cfsp.schedules.base import Schedule, check_kinds, parameters
from cfsp.sites import Site, unit_cost
from cfsp.surgery import apply


def run(cfg: DictConfig, command: str | None = None) -> Record:
    """Prune a model and measure it before and after; a run that is finished is read, not repeated.

    command: what the user typed, for the record and the saved model's card.

    Raises:
        ValueError, KeyError: what a component found wrong with its input; no record is written then.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_bool("overwrite", cfg.overwrite)
    record.make_folder(cfg.results)
    path = record.record_path(cfg.results, record.run_id(config))
    target = save_folder(cfg, path.stem)
    if path.exists() and not cfg.overwrite and (target is None or holds(target, path.stem)):
        return Record.load(path)
    if target is not None:
        check_target(target, cfg.overwrite)
    training_folder = Path(cfg.results) / "recovery" / path.stem
    check_integer("seed", cfg.seed, least=0)
    set_seed(cfg.seed)
    check_device(cfg.device)
    record.reset_peak(cfg.device)
    clock = Stopwatch()
    parts = Parts.of(cfg)
    with clock("load"):
        model, tokenizer = build(cfg.model)
        sites = find_sites(model, config["sites"])
        before, sizes = parameters(model, sites), block_parameters(model)
        cost = check_feasible(model, sites, parts)
        if target is not None:
            check_hidden(model, sites, parts.allocator.round_to)
        examples = parts.recovery.prepare(model, tokenizer, parts.needs)
        batches = parts.calibration.batches(tokenizer)
    with clock("dense evaluation"):
        dense = evaluate_once(parts.evaluators, model, tokenizer, Path(cfg.results) / "dense")
    with clock("plan"):
        plan = parts.plan(model, sites, batches, training_folder)
    with clock("surgery"):
        reference = copy.deepcopy(model) if parts.recovery.needs_dense else None
        apply(plan, sites, model)
    with clock("recovery"):
        change = change_of(sizes, model, plan)
        setting = Setting(model, tokenizer, change, training_folder, reference, tuple(cfg.logger))
        recovered = parts.recovery.run(setting, examples)
        model = recovered.model
    with clock("evaluation"):
        pruned = evaluate(parts.evaluators, model, tokenizer)
    after = parameters(model, find_sites(model, config["sites"]))
    outcome = Record(
        id=record.run_id(config),
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
        command=command,
        training=recovered.training,
    )
    outcome.save(cfg.results)
    if target is not None:
        card = partial(model_card, outcome, license=base_license(str(cfg.model.path)))
        files = {"record.json": outcome.text()}
        save(target, model, tokenizer, plan, card, files, cfg.overwrite, recovered.adapters)
    shutil.rmtree(training_folder, ignore_errors=True)
    return outcome


@dataclass(frozen=True)
class Parts:
    """What the config names, built."""

    schedule: Schedule
    criterion: Criterion
    allocator: Allocator
    compensation: Compensation
    calibration: RandomWindows
    recovery: Recovery
    evaluators: list[Evaluator]

    @classmethod
    def of(cls, cfg: DictConfig) -> Parts:
        names = [part.name for part in fields(cls) if part.name != "evaluators"]
        evaluators = [build(evaluator) for evaluator in cfg.evaluation.values()]
        return cls(**{name: build(cfg[name]) for name in names}, evaluators=evaluators)

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that calibration measures."""
        return self.criterion.needs | self.allocator.needs | self.compensation.needs

    def plan(
        self, model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], kept: Path
    ) -> PrunePlan:
        """The plan: made, or, if training was interrupted, the one that it began with."""
        if (kept / "plan.json").exists():
            print(f"cfsp: going on with the training in {kept}; delete it to begin anew", file=sys.stderr)
            return PrunePlan.load(kept)
        plan = self.schedule.plan(model, sites, batches, self.criterion, self.allocator, self.compensation)
        if not isinstance(self.recovery, NoRecovery):
            plan.save(kept)
        return plan


def check_feasible(model: PreTrainedModel, sites: Sequence[Site], parts: Parts) -> dict[str, int]:
    """Parameters of a unit of every site. Raises ValueError if the parts cannot do what is asked."""
    check_positions(model, parts.calibration.seqlen, "calibration seqlen")
    check_kinds(parts.criterion, sites)
    cost = {site.name: unit_cost(model, site) for site in sites}
    whole = sum(site.units * cost[site.name] for site in sites)
    parts.allocator.check(sites, cost, whole - parts.schedule.removed(model, sites))
    return cost


def save_folder(cfg: DictConfig, run_id: str) -> Path | None:
    """Where the pruned model goes, if it is to be kept. Raises ValueError if `save` is no such place."""
    if cfg.save is False:
        return None
    if cfg.save is True:
        return Path(cfg.results) / "models" / run_id
    if not isinstance(cfg.save, str) or not cfg.save:
        raise ValueError(f"save={cfg.save!r}: expected false, true (results/models/<id>) or a folder")
    return Path(cfg.save)


def holds(folder: Path, run_id: str) -> bool:
    """Whether a folder holds the model of this run."""
    path = folder / "record.json"
    return path.is_file() and Record.load(path).id == run_id


class Stopwatch:
    """Seconds per named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)


def evaluate(
    evaluators: Sequence[Evaluator], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Metric]:
    """All evaluators' metrics."""
    found: dict[str, Metric] = {}
    for evaluator in evaluators:
        join(found, evaluator.run(model, tokenizer))
    return found


def evaluate_once(
    evaluators: Sequence[Evaluator],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> dict[str, Metric]:
    """The same for a dense model, whose figures are kept per weights and protocol."""
    found: dict[str, Metric] = {}
    weights = fingerprint(model)
    protocols = [evaluator.protocol(model, tokenizer) for evaluator in evaluators]
    for evaluator, protocol in zip(evaluators, protocols, strict=True):
        path = cache / f"{record.digest([weights, protocol])}.json"
        if not path.exists():
            record.write_metrics(path, evaluator.run(model, tokenizer))
        join(found, record.read_metrics(path))
    return found


def join(found: dict[str, Metric], more: Mapping[str, Metric]) -> None:
    """Add metrics. Raises ValueError if one has a name that is taken, rather than lose either."""
    if taken := found.keys() & more.keys():
        raise ValueError(f"two evaluators measure {sorted(taken)[0]!r}; expected a text of its own for each")
    found.update(more)
