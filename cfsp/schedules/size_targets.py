"""Size targets: the most parameters, bytes or multiplications that the pruned model may have.

What a cut model has of these is counted, not estimated: surgery and a pass on a copy without data
(`cfsp.model.footprint.without_data`) give the figures that the evaluation `size` gives of the real one.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cfsp.allocators.base import Allocator, Budget
from cfsp.allocators.uniform import Uniform
from cfsp.model.blocks import check_positions
from cfsp.model.footprint import cache_bytes, weight_bytes, without_data
from cfsp.model.pass_cost import macs
from cfsp.model.sites import Site
from cfsp.model.views import unit_cost
from cfsp.model.weights import weight_of
from cfsp.plans.plan import Cut, Edit, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply
from cfsp.records.wanted import Wanted
from cfsp.schedules.decide import choose, widest
from cfsp.schedules.method import Method
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.base import Stats


@dataclass(frozen=True)
class SizeTarget(ABC):
    """The most that the pruned model may have of something. wanted: of what, and how much."""

    needs_dense: ClassVar[bool] = False
    """Whether what was reached is measured beside the dense model."""

    wanted: Wanted

    @abstractmethod
    def measure(self, model: PreTrainedModel) -> float:
        """Return what a model has of it."""

    def check_shape(self, model: PreTrainedModel) -> None:  # noqa: B027  # parameters have no shape
        """Raise ValueError if the model cannot read as many tokens as the target is of."""

    def known_for(self, subject: Subject, allocator: Allocator) -> SizeTarget:
        """Return the target after all that has to be measured of the dense model.

        Raises ValueError if what cut models have cannot be told for these sites.
        """
        return self

    def cut_sizes(self, model: PreTrainedModel, sites: Sequence[Site], adds: Collection[str]) -> CutSizes:
        """Return what tells how much a model has after cuts.

        adds: fields of a cut by which the compensation gives layers a bias that they lacked.
        """
        return CountedSizes(self, model, sites, adds)

    def notes(self, edits: Sequence[Edit], sites: Sequence[Site]) -> dict[str, Any]:
        """Return notes for a plan of these edits."""
        return {}

    def outcome(
        self, dense: PreTrainedModel | None, pruned: PreTrainedModel, notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return fields of the record's `target`. notes: of the plan."""
        return {"reached": self.measure(pruned)}


@dataclass(frozen=True)
class ParameterTarget(SizeTarget):
    """All parameters of the model. A tied weight counts once."""

    def measure(self, model: PreTrainedModel) -> float:
        return sum(weight.numel() for weight in model.parameters())


@dataclass(frozen=True)
class MemoryTarget(SizeTarget):
    """Bytes of the weights, in the types that they were loaded in, and of the keys and values of a batch."""

    def measure(self, model: PreTrainedModel) -> float:
        shape = dict(self.wanted.shape)
        return weight_bytes(model) + cache_bytes(model, shape["batch"], shape["context"])

    def check_shape(self, model: PreTrainedModel) -> None:
        check_positions(model, dict(self.wanted.shape)["context"], "target.context")


@dataclass(frozen=True)
class MacTarget(SizeTarget):
    """Multiplications of a pass over one sequence."""

    def measure(self, model: PreTrainedModel) -> float:
        return macs(model, dict(self.wanted.shape)["tokens"])

    def check_shape(self, model: PreTrainedModel) -> None:
        check_positions(model, dict(self.wanted.shape)["tokens"], "target.tokens")


class CutSizes(ABC):
    """What a model has of a target after cuts. dense: before them."""

    def __init__(self, target: SizeTarget, sites: Sequence[Site], dense: float):
        self.target, self.sites, self.dense = target, sites, dense

    @abstractmethod
    def after(self, cuts: Iterable[Cut]) -> float:
        """Return what the model has after these cuts of its sites."""

    def widened(
        self, sites: Sequence[Site], widths: Mapping[str, int], allocator: Allocator
    ) -> dict[str, int]:
        """Return the widths after sites took what costs nothing."""
        return dict(widths)


class CountedSizes(CutSizes):
    """Counts what a model has of a target after cuts. Each set of widths is counted once.

    adds: fields of a cut by which the compensation gives layers a bias that they lacked.
    """

    def __init__(
        self, target: SizeTarget, model: PreTrainedModel, sites: Sequence[Site], adds: Collection[str]
    ):
        self.adds, self.empty = adds, without_data(model)
        super().__init__(target, sites, target.measure(self.empty))
        self._known: dict[tuple[tuple[int, ...], ...], float] = {}

    def after(self, cuts: Iterable[Cut]) -> float:
        by_name = {cut.site: cut for cut in cuts}
        pairs = [(by_name[site.name], site) for site in self.sites if site.name in by_name]
        # Of blocks it counts which of them go; of other sites only how many units.
        key = tuple(cut.keep if site.units_are_blocks else (len(cut.keep),) for cut, site in pairs)
        if key not in self._known:
            made = copy.deepcopy(self.empty)
            apply(PrunePlan(tuple(self.blank(*pair) for pair in pairs)), self.sites, made)
            self._known[key] = self.target.measure(made)
        return self._known[key]

    def blank(self, cut: Cut, site: Site) -> Cut:
        """Return the cut with tensors of zeros where the compensation adds a bias."""
        more: dict[str, Tensor] = {}
        if cut.removed and "fill" in self.adds:
            more["fill"] = torch.zeros(cut.units * site.span)
        if cut.removed and "bias" in self.adds and site.consumers:
            member = site.consumers[0]
            outputs = weight_of(self.empty.get_submodule(member.module)).shape[1 - member.dim]
            more["bias"] = torch.zeros(outputs)
        return Cut(cut.site, cut.units, cut.keep, **more)


def widths_within(
    sizes: CutSizes,
    state: PartlyCut,
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    stats: Stats,
    allocator: Allocator,
    part: float = 1.0,
) -> dict[str, int]:
    """Return the widths of the largest model that the allocator makes within the target.

    part: how far from the dense model to the target, in (0, 1].

    Raises ValueError if the allocator cannot make so small a model.
    """
    amount = sizes.target.wanted.amount
    limit = amount if part == 1 else sizes.dense - part * (sizes.dense - amount)

    def size(keep: Mapping[str, Sequence[int]]) -> float:
        return sizes.after(state.after(keep).cuts.values())

    scores = scores or {site.name: torch.zeros(site.units) for site in sites}  # an allocator that reads none
    widths = {site.name: site.units for site in sites}
    now, least = size(choose(sites, scores, widths, allocator)), least_size(sizes, sizes.sites, allocator)
    if now > limit:
        guess = (limit - least) / ((now - least) or 1)

        def widened(found: Mapping[str, int]) -> dict[str, int]:
            return sizes.widened(sites, found, allocator)

        def fits(keep: Mapping[str, Sequence[int]]) -> bool:
            return size(keep) <= limit

        found = widest(state, sites, scores, stats, allocator, fits, guess, widened)
        if found is None:
            raise ValueError(out_of_reach(sizes, sites, allocator))
        widths = found
    return widths


def removed_for(target: SizeTarget, model: PreTrainedModel, sites: Sequence[Site]) -> int:
    """Return how many parameters of the sites have to go, whatever the scores will be.

    Raises ValueError if that depends on the scores, which say how much goes of which site.
    """
    sizes = target.cut_sizes(model, sites, ())
    if target.wanted.kind == "parameters":
        return math.ceil(sizes.dense - target.wanted.amount)
    if not all(site.units_are_neurons for site in sites) or len({unit_cost(model, one) for one in sites}) > 1:
        raise ValueError(
            f"{target.wanted.key} with a schedule that trains: how many parameters that takes depends on "
            "what it learns; expected sites=[mlp] of one kind of block, or target.parameters"
        )
    state = PartlyCut(model, sites)
    widths = widths_within(sizes, state, sites, {}, {}, Uniform())
    return round(state.parameters() - state.parameters(widths))


def check_reach(target: SizeTarget, subject: Subject, method: Method) -> None:
    """Raise ValueError, with what can be reached, if no cut of the sites meets the target."""
    model, sites, wanted, allocator = subject.model, subject.sites, target.wanted, method.allocator
    target.check_shape(model)
    cost = {site.name: unit_cost(model, site) for site in sites}
    whole = Budget.of(sites, cost, 0)
    least = min(round(allocator.least(sites, cost)), whole.total - 1)
    allocator.check(sites, Budget.of(sites, cost, least))
    sizes = target.known_for(subject, allocator).cut_sizes(model, sites, method.compensation.adds)
    if wanted.amount >= sizes.dense:
        raise ValueError(
            f"{wanted.key}: the dense model has no more than {wanted.enough(sizes.dense)}; expected less, "
            f"down to {wanted.enough(least_size(sizes, sites, allocator))}"
        )
    if wanted.amount < least_size(sizes, sites, allocator):
        raise ValueError(out_of_reach(sizes, sites, allocator))


def least_size(sizes: CutSizes, sites: Sequence[Site], allocator: Allocator) -> float:
    """Return what the model has if its sites keep as little as the allocator must leave."""
    protected = allocator.protected_sites(sites)
    widths = {
        site.name: site.units if site.name in protected else allocator.least_units(site) for site in sites
    }
    scores = {site.name: torch.zeros(site.units) for site in sites}
    keep = choose(sites, scores, sizes.widened(sites, widths, allocator), allocator)
    return sizes.after([Cut(site.name, site.units, keep[site.name]) for site in sites])


def out_of_reach(sizes: CutSizes, sites: Sequence[Site], allocator: Allocator) -> str:
    """Return the message for a target below all that the sites can reach."""
    wanted = sizes.target.wanted
    kinds = ",".join(dict.fromkeys(site.kind for site in sites))
    least = wanted.enough(least_size(sizes, sites, allocator))
    return (
        f"{wanted.key}: with sites=[{kinds}], round_to={allocator.round_to} and "
        f"protect={allocator.protection} at least {least} stays, embeddings and all that these sites do not "
        f"hold included; expected from {least} to {wanted.enough(sizes.dense)}, or more sites"
    )
