"""Trained: scores on units learn in the training loop which of them the model can do without."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cfsp.checks import check_seed
from cfsp.data.examples import Split, TrainingData
from cfsp.data.texts import Text
from cfsp.machine.environment import is_main
from cfsp.model.blocks import block_modules
from cfsp.plans.plan import PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule, notes_of
from cfsp.schedules.decide import allocate, make_cuts
from cfsp.schedules.method import Method
from cfsp.schedules.partial import Progress
from cfsp.training.arguments import Training
from cfsp.training.base import Change, Objective, Parameters
from cfsp.training.loop import Loop
from cfsp.training.pruner import Pruner

NEAR = 0.02
"""How far the share that training reached may be from the one that is asked, without a word."""


@dataclass(frozen=True, kw_only=True)
class TrainedSchedule(Schedule):
    """Train the model with a pruner's scores in it, then cut what they close; the weights change too.

    The training is the one of recoveries: `parameters` for an `objective` on `data`. When it ends, the
        allocator gives each site its width from the scores, exactly as much as is asked for goes, and of
        the criterion nothing is read. A run that was killed goes on from the last checkpoint.
    """

    pruner: Pruner
    parameters: Parameters
    objective: Objective
    data: TrainingData
    training: Training
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("schedule.seed", self.seed)

    @property
    def loop(self) -> Loop:
        return Loop(self.parameters, self.objective, self.data, self.training, self.seed, "schedule")

    @property
    def trains_head(self) -> bool:
        return not self.objective.needs_dense

    def reads(self) -> Sequence[Text]:
        return self.data.texts

    def check(self, sites: Sequence[Any], method: Method) -> None:
        super().check(sites, method)
        if method.compensation.needs:
            raise ValueError(
                f"schedule {type(self).__name__} trains what stays to do without what goes; expected "
                "compensation=none"
            )

    def prepare(self, subject: Subject, method: Method) -> Split:
        super().prepare(subject, method)
        self.pruner.check(subject.model, subject.sites)
        return self.loop.prepare(subject.model, subject.tokenizer, frozenset())

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
        stats = self.collect(subject, Progress(model, sites), sites, batches, method.allocator.needs)
        removed = self.removed(model, sites)
        target = 1 - self.budget(subject).share
        pruning = self.pruner.attach(model, sites, target)
        trained = self.loop.run(
            model,
            subject.tokenizer,
            prepared,
            subject.folder / "schedule",
            whole(model),
            dense,
            subject.follow,
            pruning,
        )
        scores = pruning.scores()
        notes = trained.notes | pruning.detach()
        tell(notes, target)
        state = Progress(model, sites)
        widths = allocate(state, sites, scores, stats, method.allocator, removed)
        cuts = make_cuts(state, sites, scores, widths, stats, method)
        return Planned(PrunePlan(tuple(cuts), notes_of(sites, stats)), notes)


def whole(model: Any) -> Change:
    """The change of a model that has lost nothing."""
    blocks = range(len(block_modules(model)))
    return Change(tuple(blocks), (0.0,) * len(blocks), None)


def tell(notes: Mapping[str, Any], target: float) -> None:
    """Say on stderr if training closed much less, or more, than is asked for."""
    if is_main() and abs(notes["reached"] - target) > NEAR:
        print(
            f"cfsp: training closed {notes['reached']:.1%} of the sites' parameters, not {target:.1%}: "
            "the last units are cut or stay by their scores alone; expected more steps, a larger "
            "schedule.pruner.learning_rate, or schedule.pruner.mask=budget",
            file=sys.stderr,
        )
