"""Blockwise: score each block on the inputs that it gets from the pruned blocks before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from cfsp.bars import bar
from cfsp.checks import check_choice
from cfsp.compensation.base import TARGETS
from cfsp.model.blocks import block_modules
from cfsp.model.sites import Site
from cfsp.passes.hidden_states import PLACES
from cfsp.passes.walk import Walk, walking
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.schedules.base import Planned, Schedule
from cfsp.schedules.bridges import runs_after
from cfsp.schedules.decide import make_cuts_of_each, overlap, score_sites
from cfsp.schedules.dropped_blocks import empty_blocks
from cfsp.schedules.joint import Cutter
from cfsp.schedules.method import Method
from cfsp.schedules.notes import notes_of
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.probes import add_probes
from cfsp.schedules.targets import target_moments
from cfsp.statistics.base import STATISTICS, Stats
from cfsp.statistics.cached import collect_of_dense


@dataclass(frozen=True, kw_only=True)
class Blockwise(Schedule):
    """Decides widths in the dense model, then chooses the units block by block on pruned inputs.

    One pass scores all sites of a block, as in the Wanda-sp baseline of FLAP (An et al. 2023,
    arXiv:2312.11983); with `allocator=uniform` this is that baseline. With `apart`, the MLP is scored on
    the output of the cut attention. A compensation's target other than "own" implies `apart`.

    It stores only the hidden states before the next block and the statistics of one block. An allocator
    that ranks the units of all sites (global_rank) stores the statistics of all sites.

    Cost: one pass for the widths, if the allocator needs statistics; then two passes through each block.
    What of the loss's gradients decides how errors count (`Quantity.of_dense`) is measured once, in the dense
    model. A target adds one pass of the dense model per block, and takes three passes per site (one of them
    dense) instead of one for all sites: five for a block with one site, eight with two.

    hidden_states: where to store them: in "memory", on the model's device, on the "host", or on "disk", in
        a temporary folder.
    """

    walks: ClassVar[bool] = True

    apart: bool = False
    hidden_states: str = "memory"
    targets: ClassVar[tuple[str, ...]] = TARGETS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("hidden_states", self.hidden_states, PLACES)

    def plan(
        self,
        subject: Subject,
        batches: Iterable[Mapping[str, Tensor]],
        method: Method,
        prepared: Any = None,
    ) -> Planned:
        batches = list(batches)  # read once per block
        widths, notes = self.widths(subject, batches, method)
        cuts = self.cuts(subject, batches, method, {name: [width] for name, width in widths.items()})
        return Planned(PrunePlan(tuple(cuts[site.name][0] for site in subject.sites), notes))

    def cuts(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        method: Method,
        widths: Mapping[str, Sequence[int]],
    ) -> dict[str, list[Cut]]:
        """Cut every site to each of its widths, where the sites before it have the first of theirs.

        -> site name -> a cut per width
        """
        model, sites, target = subject.model, subject.sites, method.compensation.target
        present = {name: own[0] for name, own in widths.items()}
        runs = runs_after(empty_blocks(present, sites)) if self.builds_bridges(method) else {}
        measured = collect_of_dense(subject, sites, batches, needed(method), self.checkpointing)
        cuts: dict[str, list[Cut]] = {}
        with ExitStack() as stack:
            walk = partial(walking, model, batches, self.hidden_states)
            pruned = stack.enter_context(walk())
            dense = stack.enter_context(walk()) if target != "own" else None
            later = stack.enter_context(walk()) if runs else None
            last = max(site.block for site in sites if site.block is not None)
            for block in bar(range(last + 1), "prune block by block", "block"):
                own = [site for site in sites if site.block == block]
                while later is not None and later.at < runs.get(block, 0):
                    later.advance()
                ahead = later if block in runs else dense
                made = self.cut_block(subject, pruned, dense, ahead, own, widths, method, measured)
                cuts |= made
                if block < last:
                    with PartlyCut(model, own, [one[0] for one in made.values()]).gates():
                        pruned.advance()
                    if dense is not None:
                        dense.advance()
        return cuts

    def cutter(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        method: Method,
        most: int,
    ) -> Cutter:
        """Return how to cut on the first `most` batches, and what that costs in passes over all."""
        some, dense = batches[:most], method.compensation.target != "own"
        blocks = [site.block for site in subject.sites if site.block is not None]
        measured = 3 * len(blocks) if dense else len(blocks if self.apart else {*blocks})
        walks = 1 + dense + self.builds_bridges(method)
        passes = measured + walks * (max(blocks) + 1)
        share = passes / len(block_modules(subject.model)) * len(some) / len(batches)
        return Cutter(partial(self.cuts, subject, some, method), share)

    @property
    def place(self) -> str:
        return self.hidden_states

    def builds_bridges(self, method: Method) -> bool:
        """Whether its fits lead the residual stream back to the dense one's: then past dropped blocks too."""
        return method.compensation.bridges and method.compensation.target == "residual"

    def check(self, sites: Sequence[Site], method: Method) -> None:
        if any(site.block is None for site in sites):
            raise ValueError(
                "schedule blockwise needs sites that lie in blocks; expected only mlp and attention"
            )
        super().check(sites, method)

    def widths(
        self,
        subject: Subject,
        batches: Sequence[Mapping[str, Tensor]],
        method: Method,
    ) -> tuple[dict[str, int], dict[str, Any]]:
        """Return how many units each site keeps, decided in the dense model, and the notes of the plan."""
        sites, criterion, allocator = subject.sites, method.criterion, method.allocator
        state = PartlyCut(subject.model, sites)
        ranked = allocator.ranks or overlap(sites)
        needs = allocator.needs | (criterion.needs if ranked else frozenset())
        stats = self.collect(subject, state, sites, batches, needs)
        scores = score_sites(state, sites, stats, criterion) if ranked else {}
        add_probes(stats, subject, batches, method, self.hidden_states)
        widths = self.allocate(state, scores, stats, method)
        cutter = partial(self.cutter, subject, batches, method)
        place = self.hidden_states
        widths, notes = self.search(subject, batches, method, stats, widths, cutter, place)
        return widths, notes_of(sites, stats) | notes

    def cut_block(
        self,
        subject: Subject,
        pruned: Walk,
        dense: Walk | None,
        ahead: Walk | None,
        sites: Sequence[Site],
        widths: Mapping[str, Sequence[int]],
        method: Method,
        measured: Stats,
    ) -> dict[str, list[Cut]]:
        """Decide the cuts of the sites in the walks' next block. site name -> a cut per width

        ahead: the dense walk whose block's output the MLP leads back to: past the dropped blocks that follow.
        measured: statistics of the dense model that are not measured again.
        """
        criterion = method.criterion
        needs = {need for need in needed(method) if not STATISTICS[need].of_dense}
        apart = self.apart or dense is not None
        mlp_last = sorted(sites, key=lambda site: site.units_are_neurons)
        groups = [[site] for site in mlp_last] if apart else [sites]
        cuts: dict[str, list[Cut]] = {}
        for group in groups if sites else []:
            state = PartlyCut(pruned.model, sites, [made[0] for made in cuts.values()])
            with pruned.resumed():
                stats = self.collect(subject, state, group, pruned.batches, needs, group[0].blocks[0])
            for site in group:
                stats[site.name] |= measured[site.name]
                ideal = ahead if site.units_are_neurons else dense
                if ideal is not None:
                    made = target_moments(ideal, pruned, site, method.compensation.target, state.gates())
                    stats[site.name] |= made
            scores = score_sites(state, group, stats, criterion)
            cuts |= make_cuts_of_each(state, group, scores, widths, stats, method)
            if ahead is not dense and group[0].units_are_neurons:
                cuts |= {site.name: fit_all(state, site, cuts[site.name], stats, method) for site in group}
        return cuts


def fit_all(state: PartlyCut, site: Site, cuts: Sequence[Cut], stats: Stats, method: Method) -> list[Cut]:
    """Return the cuts with a fit for that which removes nothing too, because the site is a bridge."""
    view, stat, keep = state.view(site), stats[site.name], range(site.units)
    return [
        cut if cut.removed else state.cut(site, keep, **method.compensation.compensate(view, stat, keep))
        for cut in cuts
    ]


def needed(method: Method) -> frozenset[str]:
    """Return the statistics that the method's choice of units needs."""
    return method.criterion.needs | method.compensation.needs
