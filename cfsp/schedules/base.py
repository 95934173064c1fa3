"""The base class of schedules, and their result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator, Budget
from cfsp.checks import check_choice
from cfsp.data.texts import Text
from cfsp.model.blocks import check_one_stack
from cfsp.model.parameter_count import count_parameters
from cfsp.model.sites import Site
from cfsp.options import Checked
from cfsp.plans.plan import PrunePlan
from cfsp.plans.routes import check_dense
from cfsp.plans.subject import Subject
from cfsp.schedules.bridges import settle_blocks
from cfsp.schedules.decide import allocate, budget_of, check_compensation, check_kinds
from cfsp.schedules.dropped_blocks import check_droppable
from cfsp.schedules.few_samples import check_samples
from cfsp.schedules.joint import Cutter, check_search, search_once
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.probes import warn_of_unmeasured
from cfsp.schedules.protecting import protect_by_knowledge
from cfsp.schedules.size_targets import SizeTarget, check_reach, widths_within
from cfsp.schedules.targets import check_residual
from cfsp.statistics.base import Stats
from cfsp.statistics.cached import collect_once
from cfsp.statistics.collect import collect
from cfsp.statistics.moments import MOMENTS, warn_of_few_tokens

BASES = ("sites", "blocks", "model")
SHARE = "a share to remove, in [0, 1)"


@dataclass(frozen=True)
class Planned:
    """A plan. training: how it was trained and at what cost, as JSON data; None if nothing was trained."""

    plan: PrunePlan
    training: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule(Checked, ABC):
    """Turns a model and calibration batches into a plan. Changes no shape, and no value unless it trains.

    sparsity: the fraction of the base's parameters to remove, in [0, 1); None with a size target.
    sparsity_of: the base: the chosen "sites", all "blocks", or the whole "model".
    checkpointing: recompute activations for gradients instead of storing them.
    size_target: the most that the pruned model may have, instead of a sparsity.
    """

    targets: ClassVar[tuple[str, ...]] = ("own",)
    """Targets of a compensation that the schedule supports."""

    probes: ClassVar[bool] = True
    """Whether the schedule supports probes: it decides the widths in the dense model."""

    walks: ClassVar[bool] = False
    """Whether it goes from block to block, and so through one stack of blocks."""

    trains: ClassVar[bool] = False
    """Whether it trains the model and learns its scores, so that a plan alone does not repeat its result."""

    routes: ClassVar[bool] = False
    """Whether its plan holds routes, which no export can express."""

    calibrates: ClassVar[bool] = True
    """Whether it reads calibration batches."""

    def will_route(self, prepared: Any) -> bool:
        """Return whether the plan will hold routes. prepared: what `prepare` returned."""
        return self.routes

    @property
    def trains_head(self) -> bool:
        """Whether it trains a head that the checkpoint lacks."""
        return False

    sparsity: Annotated[float | None, SHARE]
    sparsity_of: str = "sites"
    checkpointing: bool = False
    size_target: SizeTarget | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity!r}: expected {SHARE}")
        check_choice("sparsity_of", self.sparsity_of, BASES)

    @property
    def made_with(self) -> tuple[object, ...]:
        """Parts whose code decides what the schedule does, besides its own."""
        return ()

    def reads(self) -> Sequence[Text]:
        """Return the texts that it trains on."""
        return []

    @property
    def removes(self) -> bool:
        """Whether anything is to be removed."""
        return self.size_target is not None or bool(self.sparsity)

    def prepare(self, subject: Subject, method: Method) -> Any:
        """Check everything that can be checked before anything costly runs. Read the training data, if any.

        Returns the argument `prepared` of `plan`. Raises ValueError with what would be accepted.
        """
        self.check(subject.sites, method)
        if self.removes:
            check_dense(subject.model, subject.sites, "removed")
        if self.walks or method.allocator.probes:
            check_one_stack(subject.model, type(self if self.walks else method.allocator).__name__)
        check_droppable(subject, method)
        if method.compensation.leads_stream:
            check_residual(subject.model, method.compensation)
        if method.allocator.analysis is not None:
            check_one_stack(subject.model, "the knowledge analysis")
            method.allocator.analysis.check(subject.sites)
        self.check_budget(subject, method)

    def check_budget(self, subject: Subject, method: Method) -> None:
        """Raise ValueError, with what can be reached, if the allocator cannot remove as much as is asked."""
        if self.size_target is None:
            method.allocator.check(subject.sites, self.budget(subject))
        else:
            check_reach(self.size_target, subject, method)

    def make(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        """Return the plan, with what an analysis protects and with bridges, if the parts ask for them."""
        batches = list(batches)
        check_samples([len(batch.get("input_ids", ())) for batch in batches], method, self.walks)
        notes: dict[str, Any] = {}
        if method.allocator.analysis is not None:
            allocator, knowledge = protect_by_knowledge(subject, batches, method.allocator)
            method, notes = replace(method, allocator=allocator), {"knowledge": knowledge}
            self.check_budget(subject, method)
        target = self.size_target and self.size_target.known_for(subject, method.allocator)
        planned = replace(self, size_target=target).plan(subject, batches, method, prepared)
        notes |= target.notes(planned.plan.edits, subject.sites) if target else {}
        plan = PrunePlan(planned.plan.edits, planned.plan.notes | notes)
        plan = settle_blocks(plan, subject, batches, method, self.place, self.builds_bridges(method))
        return replace(planned, plan=plan)

    @property
    def place(self) -> str:
        """Where it stores hidden states; see `cfsp.passes.hidden_states`."""
        return "memory"

    def builds_bridges(self, method: Method) -> bool:
        """Whether `plan` builds the bridges, if the compensation wants any."""
        return False

    @abstractmethod
    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        """Decide which units every site keeps.

        batches: calibration batches. prepared: what `prepare` returned.
        """

    def budget(self, subject: Subject) -> Budget:
        """Return how many parameters the sites may keep. Raises ValueError if the sites are too small."""
        whole = budget_of(subject, {site.name: site.units for site in subject.sites})
        return replace(whole, keep=whole.total - self.removed(subject.model, subject.sites))

    def removed(self, model: PreTrainedModel, sites: Sequence[Site]) -> int:
        """Return the number of parameters to remove. Raises ValueError if the sites are too small."""
        if self.sparsity is None:
            raise ValueError(f"sparsity=None: expected {SHARE}, or a size target")
        sizes = count_parameters(model, sites)
        removed = round(self.sparsity * sizes[self.sparsity_of])
        if removed and removed >= sizes["sites"]:
            raise ValueError(
                f"sparsity={self.sparsity} of the {self.sparsity_of} is {removed:,} parameters but the "
                f"sites have {sizes['sites']:,}; expected less than "
                f"{sizes['sites'] / sizes[self.sparsity_of]:.3f}, or more sites"
            )
        return removed

    def allocate(
        self,
        state: PartlyCut,
        scores: Mapping[str, Tensor],
        stats: Stats,
        method: Method,
        part: Fraction = Fraction(1),
    ) -> dict[str, int]:
        """Return widths for the units that are left, after which this part of what is to go is gone."""
        sites = [site for site in state.sites if site.units]
        if self.size_target is not None:
            sizes = self.size_target.cut_sizes(state.model, state.whole_sites, method.compensation.adds)
            widths = widths_within(sizes, state, sites, scores, stats, method.allocator, float(part))
            warn_of_unmeasured(stats, widths)
            return widths
        removed = int(part * self.removed(state.model, state.whole_sites))
        if state.cuts:
            dense = round(PartlyCut(state.model, state.whole_sites).parameters())
            removed -= dense - round(state.parameters())
        widths = allocate(state, sites, scores, stats, method.allocator, removed)
        warn_of_unmeasured(stats, widths)
        return widths

    def collect(
        self,
        subject: Subject,
        state: PartlyCut,
        sites: Sequence[Site],
        batches: Iterable[Mapping[str, Tensor]],
        needs: Collection[str],
        last_block: str | None = None,
    ) -> Stats:
        """Return the partly cut model's statistics at these sites. Those of the dense model are cached."""
        if not needs:  # magnitude needs no forward pass
            return {site.name: {} for site in sites}
        names = {site.name for site in sites}
        whole = [site for site in state.whole_sites if site.name in names and state.has_units(site)]
        with state.gates():
            if state.cuts or last_block:
                stats = collect(state.model, whole, batches, needs, last_block, self.checkpointing)
            else:
                stats = collect_once(subject, whole, batches, needs, self.checkpointing)
        found = {site.name: state.stat(site, stats[site.name]) for site in sites if site.name in stats}
        if "input_tokens" in needs and not {*MOMENTS.values()}.isdisjoint(needs):
            for name, stat in found.items():
                warn_of_few_tokens(name, stat)
        return found

    def check(self, sites: Sequence[Site], method: Method) -> None:
        """Raise ValueError if the sites and the method's parts do not work together."""
        criterion = method.criterion
        expected = "a schedule that learns scores: schedule=movement, lorashear or routing"
        if self.trains:
            expected = "criterion=learned: this schedule learns its scores"
        if criterion.learned != self.trains:
            name = type(criterion).__name__
            raise ValueError(f"criterion {name} with schedule {type(self).__name__}; expected {expected}")
        check_kinds(criterion, sites)
        criterion.check_target(method.compensation.target)
        self.check_probes(sites, method.allocator)
        check_compensation(method.compensation, sites, self.targets, type(self).__name__)

    def check_probes(self, sites: Sequence[Site], allocator: Allocator) -> None:
        """Raise ValueError if the allocator probes what this schedule does not."""
        if allocator.probes and not (self.probes and all(site.block is not None for site in sites)):
            raise ValueError(
                f"allocator {type(allocator).__name__} probes sites that lie in blocks, in the dense model; "
                "expected only mlp and attention, and schedule=one_shot or blockwise"
            )
        of_sites = self.size_target is not None or self.sparsity_of == "sites"
        if allocator.probes and allocator.probes.cost != "parameters" and not of_sites:
            raise ValueError(
                f"budget={allocator.probes.cost} is a share of what the sites take; expected "
                f"sparsity_of=sites, not {self.sparsity_of}"
            )
        if allocator.exchanges:
            check_search(allocator, sites, self.size_target)

    def search(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        method: Method,
        stats: Stats,
        widths: dict[str, int],
        cutter: Callable[[int], Cutter],
        place: str = "memory",
    ) -> tuple[dict[str, int], dict[str, Any]]:
        """Return the widths after a joint search, if any, and notes. cutter: batches -> how to cut."""
        budget = self.budget(subject) if self.size_target is None else budget_of(subject, widths)
        search = method.allocator.search(subject.sites, stats, budget)
        if search is None or budget.keep == budget.total:
            return widths, {}
        if self.size_target is not None and method.compensation.adds:  # a first cut would add a bias
            search = search.staying({site.name for site in subject.sites if widths[site.name] == site.units})
        parts = self, method.criterion, method.compensation
        found = search_once(subject, batches, parts, cutter(search.batches), widths, search, place)
        return found["widths"], {"joint_search": found["notes"]}
