"""Unchanged: the schedule of a model that is measured as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.model.sites import Site
from cfsp.plans.plan import PrunePlan
from cfsp.plans.routes import take_routes
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.method import Method


@dataclass(frozen=True, kw_only=True)
class Unchanged(Schedule):
    """Removes nothing and calibrates nothing.

    A saved routed model is taken apart: its routers are the plan, so surgery puts them back, and until then
    the model is the dense one inside, which the routed one is compared with.
    """

    probes = False
    calibrates = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.removes:
            wanted = (
                f"sparsity={self.sparsity:g}" if self.size_target is None else self.size_target.wanted.key
            )
            raise ValueError(f"{wanted}: schedule=unchanged removes nothing; expected sparsity=0")

    def check(self, sites: Sequence[Site], method: Method) -> None:
        """Raise ValueError if a part of the method would have to decide something."""
        if not method.criterion.learned or method.compensation.needs or method.allocator.needs:
            raise ValueError(
                "schedule Unchanged decides nothing; expected criterion=learned, allocator=uniform and "
                "compensation=none"
            )

    def prepare(self, subject: Subject, method: Method) -> PrunePlan:
        """Make a routed model dense, and return the plan that routes it again; of others an empty plan."""
        self.check(subject.sites, method)
        routes = take_routes(subject.model)
        return PrunePlan(tuple(routes), asked_of(subject.model) if routes else {})

    def will_route(self, prepared: PrunePlan) -> bool:
        """Return whether the model came with routers."""
        return bool(prepared.edits)

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: PrunePlan | None = None,
    ) -> Planned:
        return Planned(self.prepare(subject, method) if prepared is None else prepared)


def asked_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return the active share that a saved routed model was asked for, as notes; empty if not known."""
    folder = Path(model.config.name_or_path or "")
    if not (folder / "plan.json").is_file():
        return {}
    notes = PrunePlan.load(folder).notes
    return {"active": notes["active"]} if "active" in notes else {}
