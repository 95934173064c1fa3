"""Latency target: the most seconds that a pass of the pruned model may take, by a measured table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator
from cfsp.evaluation.latency import random_tokens
from cfsp.model.blocks import check_positions
from cfsp.model.pass_cost import read_prompt
from cfsp.model.sites import Site
from cfsp.passes.modes import evaluating
from cfsp.plans.plan import Cut, Edit
from cfsp.plans.subject import Subject
from cfsp.schedules.decide import overlap
from cfsp.schedules.latency_table import LatencyTable, Pass, in_turns, table_once
from cfsp.schedules.size_targets import CutSizes, SizeTarget


@dataclass(frozen=True)
class LatencyTarget(SizeTarget):
    """Seconds of the pass that reads `batch` prompts of `tokens` tokens (see `read_prompt`).

    Cut models are not timed while widths are chosen. What they take is the dense model's seconds less what
    each site saves by the table, interpolated between widths. table: None before it is measured.
    """

    needs_dense: ClassVar[bool] = True

    table: LatencyTable | None = None

    def measure(self, model: PreTrainedModel) -> float:
        (seconds,) = self.seconds([model])
        return seconds

    def seconds(self, models: Sequence[PreTrainedModel]) -> list[float]:
        """Return the median seconds of each model, timed in turns."""
        shape = dict(self.wanted.shape)
        ids = random_tokens(models, shape["batch"], shape["tokens"])
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(evaluating(model))
            rounds = in_turns([Pass(model, partial(read_prompt, model, ids)) for model in models])
        return [median(times) for times in zip(*rounds, strict=True)]

    def check_shape(self, model: PreTrainedModel) -> None:
        check_positions(model, dict(self.wanted.shape)["tokens"], "target.tokens")

    def known_for(self, subject: Subject, allocator: Allocator) -> LatencyTarget:
        sites, shape = subject.sites, dict(self.wanted.shape)
        if any(site.units_are_residual_channels for site in sites) or (len(sites) > 1 and overlap(sites)):
            raise ValueError(
                f"{self.wanted.key}: what each site saves is added up; expected sites that share no weights "
                "(attention or query_heads, mlp), or sites=[block]"
            )
        steps = {site.name: allocator.step(site) for site in sites}
        return replace(self, table=table_once(subject, shape["batch"], shape["tokens"], steps))

    def cut_sizes(self, model: PreTrainedModel, sites: Sequence[Site], adds: Any) -> TimedSizes:
        assert self.table is not None, "`known_for` measures it"
        return TimedSizes(self, sites, self.table)

    def notes(self, edits: Sequence[Edit], sites: Sequence[Site]) -> dict[str, Any]:
        """Return the table, and the seconds of the dense and of the cut model by it."""
        assert self.table is not None, "`known_for` measures it"
        cuts = [edit for edit in edits if isinstance(edit, Cut)]
        predicted = TimedSizes(self, sites, self.table).seconds_after(cuts)
        return {"latency": dict(self.wanted.shape) | asdict(self.table) | {"predicted": predicted}}

    def outcome(
        self, dense: PreTrainedModel | None, pruned: PreTrainedModel, notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the seconds of both models, timed in turns, and those that the plan went by."""
        assert dense is not None, "`needs_dense`"
        before, after = self.seconds([dense, pruned])
        table = {name: notes["latency"][name] for name in ("dense", "predicted")}
        return {"dense": before, "reached": after, "table": table}


class TimedSizes(CutSizes):
    """Seconds of cut models by a table, or their share of the dense model's."""

    def __init__(self, target: LatencyTarget, sites: Sequence[Site], table: LatencyTable):
        self.table = table
        self.unit = table.dense if target.wanted.relative else 1.0
        self._seconds = {site.name: table.seconds(site) for site in sites}
        super().__init__(target, sites, table.dense / self.unit)

    def after(self, cuts: Iterable[Cut]) -> float:
        return round(self.seconds_after(cuts) / self.unit, 12)  # sums of equal savings are equal

    def seconds_after(self, cuts: Iterable[Cut]) -> float:
        """Return the seconds of the model after these cuts of its sites."""
        saved = 0.0
        for cut in cuts:
            if cut.site in self._seconds:
                row = self._seconds[cut.site]
                saved += float(row[-1] - row[len(cut.keep)])
        return self.table.dense - saved

    def widened(
        self, sites: Sequence[Site], widths: Mapping[str, int], allocator: Allocator
    ) -> dict[str, int]:
        """Return for each site the widest width from the given one on that takes the least seconds.

        So a width just above a step becomes the one below the next step, and where a kernel is slow at odd
        widths, one that it is fast at. Wider models then never take less, so that a search can halve.
        """
        found = {}
        for site in sites:
            width, step = widths[site.name], allocator.step(site)
            wider = np.array([width, *range((width // step + 1) * step, site.units, step), site.units])
            wider = wider[wider >= width]
            seconds = self._seconds[site.name][wider]
            found[site.name] = int(wider[seconds == seconds.min()].max())
        return found
