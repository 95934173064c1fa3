"""Run: one experiment, from config to record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from cfsp import record
from cfsp.allocators.base import Allocator
from cfsp.build import build
from cfsp.cards import base_license, model_card
from cfsp.checkpoints import check_target, save
from cfsp.checks import check_bool, check_integer
from cfsp.criteria.base import Criterion
from cfsp.description import check_hidden
from cfsp.evaluation.base import Evaluator
from cfsp.finding import find_sites
from cfsp.layouts import check_positions
from cfsp.loading import check_device, fingerprint
from cfsp.record import Metric, Record
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
    check_integer("seed", cfg.seed, least=0)
    set_seed(cfg.seed)
    check_device(cfg.device)
    record.reset_peak(cfg.device)
    clock = Stopwatch()
    schedule, criterion, allocator = build(cfg.schedule), build(cfg.criterion), build(cfg.allocator)
    compensation, calibration = build(cfg.compensation), build(cfg.calibration)
    evaluators = [build(evaluator) for evaluator in cfg.evaluation.values()]
    with clock("load"):
        model, tokenizer = build(cfg.model)
        sites = find_sites(model, config["sites"])
        check_positions(model, calibration.seqlen, "calibration seqlen")
        before = parameters(model, sites)
        cost = check_feasible(model, sites, schedule, criterion, allocator)
        if target is not None:
            check_hidden(model, sites, allocator.round_to)
        batches = calibration.batches(tokenizer)
    with clock("dense evaluation"):
        dense = evaluate_once(evaluators, model, tokenizer, Path(cfg.results) / "dense")
    with clock("plan"):
        plan = schedule.plan(model, sites, batches, criterion, allocator, compensation)
    with clock("surgery"):
        apply(plan, sites, model)
    with clock("evaluation"):
        pruned = evaluate(evaluators, model, tokenizer)
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
    )
    outcome.save(cfg.results)
    if target is not None:
        card = partial(model_card, outcome, license=base_license(str(cfg.model.path)))
        save(target, model, tokenizer, plan, card, {"record.json": outcome.text()}, cfg.overwrite)
    return outcome


def check_feasible(
    model: PreTrainedModel,
    sites: Sequence[Site],
    schedule: Schedule,
    criterion: Criterion,
    allocator: Allocator,
) -> dict[str, int]:
    """Parameters of a unit of every site. Raises ValueError if the parts cannot do what is asked."""
    check_kinds(criterion, sites)
    cost = {site.name: unit_cost(model, site) for site in sites}
    whole = sum(site.units * cost[site.name] for site in sites)
    allocator.check(sites, cost, whole - schedule.removed(model, sites))
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
