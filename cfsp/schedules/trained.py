"""Trained: train scores on units beside the weights, then cut the units with the lowest scores."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.checks import check_seed
from cfsp.data.examples import Split
from cfsp.machine.environment import is_main, processes
from cfsp.model.blocks import block_modules
from cfsp.model.sites import Site
from cfsp.plans.plan import PrunePlan
from cfsp.plans.subject import Subject
from cfsp.recovery.distilled_from import load_teacher, with_teacher
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.method import Method
from cfsp.schedules.notes import notes_of
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.size_targets import removed_for
from cfsp.training.base import Change, Setting
from cfsp.training.loop import WithLoop
from cfsp.training.pruner import Pruner

NEAR = 0.02
"""Difference between the fraction that was masked and the requested one, above which to warn."""


@dataclass(frozen=True, kw_only=True)
class TrainedSchedule(WithLoop, Schedule):
    """Trains the model and a pruner's scores together, then cuts the units with the lowest scores.

    The training is that of recoveries: `parameters` for an `objective` on `data`. After it, the allocator
    sets each site's width from the scores, so that exactly the requested fraction is removed. A killed run
    resumes from the last checkpoint, which holds weights and scores.
    """

    group: ClassVar[str] = "schedule"
    probes: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    pruner: Pruner

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("schedule.seed", self.seed)

    @property
    def made_with(self) -> tuple[object, ...]:
        return (self.pruner, self.parameters, self.objective, self.data, self.data.task, self.training)

    def check(self, sites: Sequence[Any], method: Method) -> None:
        super().check(sites, method)
        self.check_parameters()
        if self.size_target is not None and self.size_target.needs_dense:
            raise ValueError(
                f"{self.size_target.wanted.key} with a schedule that trains: how many parameters that takes "
                "depends on what it learns; expected target.parameters, or target.macs"
            )
        if self.parameters.frozen and not self.pruner.learns:
            raise ValueError(
                "frozen weights beside scores that are measured: nothing is trained; expected "
                "recovery/parameters@schedule.parameters=full, or a mask that learns"
            )
        if method.compensation.needs:
            raise ValueError(
                f"schedule {type(self).__name__} trains the model to compensate for its cuts; expected "
                "compensation=none"
            )

    def check_parameters(self) -> None:
        """Raise ValueError if the pruner cannot work with the parameters that are trained."""
        name = type(self.pruner).__name__
        if self.training.sharded:
            raise ValueError(f"pruner {name} changes weights between steps; expected a training without fsdp")
        check_one_process(name)
        if self.parameters.wraps and not self.pruner.on_adapters:
            raise ValueError(
                f"pruner {name} masks the weights that it trains; adapters cannot be merged into them; "
                "expected recovery/parameters@schedule.parameters=full"
            )
        if self.pruner.on_adapters and (self.parameters.apart or not self.parameters.wraps):
            raise ValueError(
                f"pruner {name} prunes by adapters and merges them; expected "
                "recovery/parameters@schedule.parameters=lora, with merge=true"
            )

    def prepare(self, subject: Subject, method: Method) -> Split:
        super().prepare(subject, method)
        setting = self.setting(subject)
        self.parameters.check(subject.model)
        self.pruner.check(subject.model, subject.sites, self.parameters.adapted(subject.model))
        load_teacher(self.objective, setting.model, setting.tokenizer)  # only a check
        split = self.loop.prepare(setting.model, setting.tokenizer, frozenset())
        self.pruner.check_length(self.training.steps(len(split.train)), self.most_units(subject, method))
        return split

    def removed(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        if self.size_target is None:
            return super().removed(model, sites)
        return removed_for(self.size_target, model, sites)

    def most_units(self, subject: Subject, method: Method) -> int:
        """Return how many units the allocator can take at most."""
        cost, allocator = self.budget(subject).cost, method.allocator
        protected = allocator.protected_sites(subject.sites)
        removed = self.removed(subject.model, subject.sites)
        if removed:  # an MLP loses whole multiples, so a little more may go
            removed += (allocator.round_to - 1) * max(cost.values())
        return most_units([site for site in subject.sites if site.name not in protected], cost, removed)

    def setting(self, subject: Subject, dense: PreTrainedModel | None = None) -> Setting:
        """Return the input of the training. Raises ValueError if it has no tokenizer or no folder."""
        if subject.tokenizer is None or subject.folder is None:
            raise ValueError(
                f"schedule {type(self).__name__} trains the model; expected a subject with a tokenizer and a "
                "folder for checkpoints, as in a run"
            )
        model, folder = subject.model, subject.folder / "schedule"
        return Setting(model, subject.tokenizer, unchanged(model), folder, dense, subject.follow)

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Split | None = None,
    ) -> Planned:
        model, sites = subject.model, subject.sites
        if prepared is None:
            prepared = self.prepare(subject, method)
        dense = copy.deepcopy(model) if self.objective.needs_dense else None
        setting, more = with_teacher(self.setting(subject, dense), self.objective)
        state = PartlyCut(model, sites)
        stats = self.collect(subject, state, sites, batches, method.allocator.needs)
        removed, target = self.removed(model, sites), 1 - self.budget(subject).share

        def decide(scores: Mapping[str, Tensor], due: float = 1.0) -> Mapping[str, tuple[int, ...]]:
            widths = allocate(state, sites, scores, stats, method.allocator, int(due * removed))
            return choose(sites, scores, widths, method.allocator)

        pruning = self.pruner.attach(model, sites, target, decide)
        trained = self.loop.run(setting, prepared, pruning)
        keep = pruning.decided()
        notes = trained.notes | pruning.detach() | more
        notes["met"] = abs(notes["reached"] - target) <= NEAR
        warn_of_another_fraction(notes["reached"], target)
        after = PartlyCut(model, sites)
        cuts = [after.cut(site, keep[site.name]) for site in sites]
        return Planned(PrunePlan(tuple(cuts), notes_of(sites, stats)), notes)


def most_units(sites: Sequence[Site], cost: Mapping[str, int], removed: int) -> int:
    """Return how many units go at most if so many parameters go: the cheapest ones first."""
    count = 0
    for site in sorted(sites, key=lambda site: cost[site.name]):
        here = min(site.units, max(0, -(-removed // cost[site.name])))
        count, removed = count + here, removed - here * cost[site.name]
    return count


def check_one_process(pruner: str) -> None:
    """Raise ValueError if several processes train together: each would change its own copy between steps."""
    if (count := processes()) > 1:
        raise ValueError(
            f"pruner {pruner} changes scores, masks or weights between steps, in one process; expected no "
            f"torchrun and no accelerate launch, not WORLD_SIZE={count}"
        )


def unchanged(model: PreTrainedModel) -> Change:
    """Return the change of a model that has lost nothing."""
    blocks = range(len(block_modules(model)))
    return Change(tuple(blocks), (0.0,) * len(blocks), None)


def warn_of_another_fraction(reached: float, target: float) -> None:
    """Warn on stderr if a fraction far from the requested one was masked."""
    if is_main() and abs(reached - target) > NEAR:
        print(
            f"cfsp: training masked {reached:.1%} of the sites' parameters, not {target:.1%}: the scores "
            "alone decide about the other units; expected more steps or a larger "
            "schedule.pruner.learning_rate",
            file=sys.stderr,
        )
