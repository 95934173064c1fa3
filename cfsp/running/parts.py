"""Parts: the components of a run, built from its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from cfsp.data.calibration import Batch, Calibration
from cfsp.data.overlaps import overlaps
from cfsp.data.tasks.base import Task
from cfsp.data.windows import fingerprint_examples
from cfsp.evaluation.base import Evaluator, PairedEvaluator, Sampler
from cfsp.exports.base import Exporter
from cfsp.loggers.base import Logger
from cfsp.machine.environment import is_main
from cfsp.model.sites import Site
from cfsp.plans.kept import begin_plan, keep_plan, kept_plan
from cfsp.plans.subject import Subject
from cfsp.recovery.base import Recovery
from cfsp.running.build import build
from cfsp.running.config import chosen
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.few_samples import check_samples
from cfsp.schedules.method import Method
from cfsp.schedules.size_target_of import size_target_of
from cfsp.storage.about import About
from cfsp.storage.code import code_of
from cfsp.storage.fingerprints import digest, fingerprint_batches


@dataclass(frozen=True)
class Parts:
    """The components of one run. paired: evaluators that need the dense model beside the pruned one."""

    schedule: Schedule
    method: Method
    task: Task
    calibration: Calibration
    recovery: Recovery
    evaluators: list[Evaluator]
    paired: list[PairedEvaluator]
    samplers: list[Sampler]
    exporters: list[Exporter]
    loggers: list[Logger]

    @classmethod
    def of(cls, cfg: DictConfig) -> Parts:
        names = ("task", "schedule", "calibration", "recovery")
        built = [build(part) for part in chosen(cfg.evaluation)]
        measures = [part for one in built if isinstance(one, Evaluator) for part in one.parts()]
        parts = {name: build(cfg[name]) for name in names}
        if (target := size_target_of(cfg.target)) is not None:
            parts["schedule"] = replace(parts["schedule"], size_target=target)
        return cls(
            **parts,
            method=Method(**{name: build(cfg[name]) for name in ("criterion", "allocator", "compensation")}),
            evaluators=[one for one in measures if not isinstance(one, PairedEvaluator)],
            paired=[one for one in measures if isinstance(one, PairedEvaluator)],
            samplers=[one for one in built if isinstance(one, Sampler)],
            exporters=[build(part) for part in chosen(cfg.export)],
            loggers=[build(part) for part in chosen(cfg.logger)] if is_main() else [],
        )

    @property
    def need_dense(self) -> bool:
        """Whether the dense model is needed after surgery."""
        target = self.schedule.size_target
        timed = target is not None and target.needs_dense
        return timed or self.recovery.needs_dense or bool(self.paired)

    def head(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the model's head for loading, from the task. model: the model's config.

        Raises ValueError if the task and the config contradict each other.
        """
        if self.task.head is None:
            return {}
        if model["head"] != self.task.head:
            raise ValueError(
                f"model.head={model['head']} beside a task of another head: expected "
                f"model.head={self.task.head}, or another task"
            )
        trained = self.recovery.trains_head or self.schedule.trains_head
        return {"labels": self.task.choices, "head_trained": trained}

    def prepare(self, subject: Subject) -> Any:
        """Return what the schedule prepares. Raises ValueError if a part cannot work with the model."""
        model, tokenizer = subject.model, subject.tokenizer
        if tokenizer is None:
            raise ValueError("a run measures and samples with a tokenizer; expected the model's own")
        if self.schedule.calibrates:
            self.calibration.check(model, tokenizer)
        prepared = self.schedule.prepare(subject, self.method)
        check_samples(self.calibration.sizes, self.method, self.schedule.walks)
        self.check_pair(self.schedule.will_route(prepared))
        for evaluator in [*self.evaluators, *self.paired]:
            evaluator.protocol(model, tokenizer)
        for sampler in self.samplers:
            sampler.check(model, tokenizer)
        if self.schedule.will_route(prepared) and self.exporters:
            raise ValueError(
                "export: these MLPs are routed, which no engine here computes; expected export=[]"
            )
        for exporter in self.exporters:
            exporter.check(model, tokenizer)
            if self.blocks_will_differ(subject.sites):
                exporter.check_uneven(model)
        return prepared

    def check_pair(self, routes: bool) -> None:
        """Raise ValueError if evaluators would compare a model with itself. routes: whether it is routed."""
        if self.paired and not (self.schedule.calibrates or routes or self.recovery.trains):
            names = ", ".join(type(one).__name__.lower() for one in self.paired)
            raise ValueError(
                f"evaluation={names}: with schedule=unchanged there is no other model to compare this one "
                "with; expected the run that makes it, or cfsp-compare DENSE THIS, which times two models"
            )

    def blocks_will_differ(self, sites: Sequence[Site]) -> bool:
        """Return whether the plan gives blocks different sizes, as far as that is known before it is made."""
        allocator = self.method.allocator
        equal = allocator.even and not allocator.blocks and allocator.analysis is None
        return self.schedule.removes and not equal and any(site.block is not None for site in sites)

    def about(self, model: Mapping[str, Any]) -> About:
        """Return the description of this run's statistics in the cache. model: the model's config."""
        calibration, revision = self.calibration, model["revision"]
        return About(
            model=str(model["path"]),
            revision=None if revision is None else str(revision),
            dtype=str(model["dtype"]),
            text=calibration.label,
            samples=calibration.samples,
            seqlen=calibration.seqlen,
            seed=calibration.seed,
        )

    def overlaps(self, tokenizer: PreTrainedTokenizerBase, batches: Sequence[Batch]) -> list[str]:
        """Return warnings about texts that evaluation shares with calibration or a training.

        batches: of the calibration.
        """
        read = [text for evaluator in self.evaluators for text in evaluator.reads()] if is_main() else []
        made_with = self.calibration.reads(tokenizer, batches) if self.schedule.calibrates else []
        return overlaps([*made_with, *self.schedule.reads(), *self.recovery.reads()], read)

    def plan(self, subject: Subject, batches: Sequence[Batch], prepared: Any, examples: Any) -> Planned:
        """Make the plan, or return the stored one of an interrupted training, without calibrating again.

        examples: what recovery will train on. A stored plan with other examples is ignored. A schedule that
            trains stores no plan: it resumes from its own checkpoints, which have the weights too.
        """
        method, trains = self.method, self.schedule.trains
        deciding = (self.schedule, method.criterion, method.allocator, method.compensation)
        code = code_of(
            *map(type, (*deciding, *self.schedule.made_with))
        )  # what an edit of it would plan otherwise is not gone on with
        seen = [subject.fingerprint, fingerprint_batches(batches), fingerprint_examples(examples), code]
        made_from = digest([*seen, fingerprint_examples(prepared)] if trains else seen)
        folder = subject.folder
        if folder is not None and (kept := kept_plan(folder, made_from)) is not None:
            return Planned(kept)
        if folder is not None and trains:
            begin_plan(folder, made_from)
        planned = self.schedule.make(subject, batches, method, prepared)
        if folder is not None and self.recovery.trains and not trains:
            keep_plan(folder, planned.plan, made_from)
        return planned
