"""Parts: what a config names, built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.allocators.base import Allocator
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.data.calibration import Batch, RandomWindows
from cfsp.data.overlaps import overlaps
from cfsp.data.windows import fingerprint_examples
from cfsp.evaluation.base import Evaluator, PairedEvaluator, Sampler
from cfsp.loggers.base import Logger
from cfsp.machine.environment import is_main
from cfsp.model.blocks import check_positions
from cfsp.model.sites import Site
from cfsp.plans.kept import keep_plan, kept_plan
from cfsp.plans.plan import PrunePlan
from cfsp.recovery.base import Recovery
from cfsp.recovery.none import NoRecovery
from cfsp.running.build import build
from cfsp.running.config import chosen
from cfsp.schedules.base import Schedule
from cfsp.storage.about import About
from cfsp.storage.cache import Cache
from cfsp.storage.fingerprints import digest, fingerprint, fingerprint_batches


@dataclass(frozen=True)
class Parts:
    """The components of one run. paired: evaluators that want the dense model beside the pruned one."""

    schedule: Schedule
    criterion: Criterion
    allocator: Allocator
    compensation: Compensation
    calibration: RandomWindows
    recovery: Recovery
    evaluators: list[Evaluator]
    paired: list[PairedEvaluator]
    samplers: list[Sampler]
    loggers: list[Logger]

    @classmethod
    def of(cls, cfg: DictConfig) -> Parts:
        names = ("schedule", "criterion", "allocator", "compensation", "calibration", "recovery")
        built = [build(part) for part in chosen(cfg.evaluation)]
        measures = [part for one in built if isinstance(one, Evaluator) for part in one.parts()]
        return cls(
            **{name: build(cfg[name]) for name in names},
            evaluators=[one for one in measures if not isinstance(one, PairedEvaluator)],
            paired=[one for one in measures if isinstance(one, PairedEvaluator)],
            samplers=[one for one in built if isinstance(one, Sampler)],
            loggers=[build(part) for part in chosen(cfg.logger)] if is_main() else [],
        )

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that calibration measures."""
        return self.criterion.needs | self.allocator.needs | self.compensation.needs

    @property
    def need_dense(self) -> bool:
        """Whether the dense model must outlive surgery."""
        return self.recovery.needs_dense or bool(self.paired)

    def check(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sites: Sequence[Site]
    ) -> dict[str, int]:
        """Parameters of a unit of every site. Raises ValueError if the parts cannot do what is asked."""
        check_positions(model, self.calibration.seqlen, "calibration seqlen")
        self.schedule.check(sites, self.criterion, self.allocator, self.compensation)
        cost = self.schedule.check_budget(model, sites, self.allocator)
        for evaluator in [*self.evaluators, *self.paired]:
            evaluator.protocol(model, tokenizer)
        for sampler in self.samplers:
            sampler.check(model, tokenizer)
        return cost

    def about(self, model: Mapping[str, Any]) -> About:
        """What people call the statistics by that this run keeps. model: its config."""
        calibration, revision = self.calibration, model["revision"]
        return About(
            model=str(model["path"]),
            revision=None if revision is None else str(revision),
            dtype=str(model["dtype"]),
            text=calibration.text.label,
            samples=calibration.samples,
            seqlen=calibration.seqlen,
            seed=calibration.seed,
        )

    def overlaps(self) -> list[str]:
        """What calibration or recovery reads and evaluation measures on."""
        read = [text for evaluator in self.evaluators for text in evaluator.reads()] if is_main() else []
        return overlaps([self.calibration.text, *self.recovery.reads()], read)

    def plan(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        batches: Sequence[Batch],
        examples: Any,
        kept: Path,
        cache: Cache,
    ) -> PrunePlan:
        """The plan: made, or, if training was interrupted, the one that it began with, in `kept`.

        examples: what recovery will train on; with other ones training begins anew.
        """
        seen = [fingerprint(model), fingerprint_batches(batches), fingerprint_examples(examples)]
        if (plan := kept_plan(kept, digest(seen))) is not None:
            return plan
        plan = self.schedule.plan(
            model, sites, batches, self.criterion, self.allocator, self.compensation, cache
        )
        if not isinstance(self.recovery, NoRecovery):
            keep_plan(kept, plan, digest(seen))
        return plan
