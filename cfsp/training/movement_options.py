"""Options of movement pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.model.sites import Site
from cfsp.options import Checked
from cfsp.training.learned_gates import Given, HardConcrete, Rule, Step

KINDS = ("mlp", "attention", "cross_attention")
"""Kinds of sites that the pruner can score."""

TILED: Mapping[str, tuple[str, ...]] = {"struct": (), "hybrid": KINDS[1:], "block": KINDS}
"""Variant -> kinds of sites that have a score per tile; the others have one per unit."""


@dataclass(frozen=True)
class MaskKind:
    """How scores become a mask.

    rule: of a gate. start: score that gates begin with. steered: only scores below a threshold are closed,
    and a penalty decides how many fall below it; otherwise the lowest are closed, wherever they are.
    bounded: the threshold is one of sigmoid(S), not of S. learned: whether scores train. per_gate: the share
    of tiles is one of each weight's tiles, not of all weights' together.
    """

    rule: Rule = field(default_factory=Step)
    start: float = 0.0
    steered: bool = False
    bounded: bool = True
    learned: bool = True
    per_gate: bool = False


MASKS: Mapping[str, MaskKind] = {
    "soft": MaskKind(steered=True),
    "hard": MaskKind(steered=True, bounded=False),
    "hard_concrete": MaskKind(HardConcrete(), start=2.0, steered=True),
    "top": MaskKind(per_gate=True),
    "budget": MaskKind(),
    "magnitude": MaskKind(Given(), learned=False, per_gate=True),
}


@dataclass(frozen=True, kw_only=True)
class MovementOptions(Checked):
    """What is scored, and how scores become masks.

    variant: struct scores heads (or key/value groups) and neurons; hybrid scores tiles of the attention's
        weights and neurons; block scores tiles of all weights.
    tile: side of the square tiles; 1 is plain movement pruning (Sanh et al., arXiv:2005.07683).
    mask: how scores S become a mask; t rises by a cubic schedule. Never more is closed than is due.
        soft: the lowest with sigmoid(S) <= t (soft movement pruning; the block pruning paper).
        hard: the lowest with S <= t; t rises from -threshold to threshold.
        hard_concrete: as soft; an open gate is random and can be exactly 0 or 1 (L0, arXiv:1712.01312).
        top: the lowest S, of tiles the lowest of each weight (movement pruning).
        budget: the lowest S, of tiles the lowest of all weights together (one budget; GRASPrune,
            arXiv:2604.19398). Where units are scored it is top, because the allocator chooses units of all
            sites together anyway. S stands for a score per parameter: all begin equal, whatever they cost.
        magnitude: the smallest mean |W|, of tiles the smallest of each weight; nothing is learned.
    threshold: t at the end.
    penalties: kind of site -> weight of its mean openness in the loss (lambda); cross_attention has that of
        attention unless it is given. One controller multiplies them all until the share that is asked for is
        removed; top, budget and magnitude need no penalty.
    warmup, cooldown: shares of the steps before masks begin to close, and after they have been decided.
    learning_rate: of the scores, which have no weight decay; None: 20 / steps, but at least the papers' 1e-2,
        because a score falls by at most the rate in a step and closes at -2.2. gain: of the controller.
    """

    variant: str = "hybrid"
    tile: int = 32
    mask: str = "soft"
    threshold: float = 0.1
    penalties: Mapping[str, float] = field(default_factory=lambda: {"mlp": 10.0, "attention": 10.0})
    warmup: float = 0.1
    cooldown: float = 0.4
    learning_rate: float | None = None
    gain: float = 10.0

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, tuple(TILED))
        check_choice("mask", self.mask, tuple(MASKS))
        check_integer("tile", self.tile, least=1)
        for kind, weight in self.penalties.items():
            check_choice("penalties", kind, KINDS)
            check_number(f"penalties.{kind}", weight, least=0)
        for name in ("threshold", "warmup", "cooldown", "gain"):
            check_number(name, getattr(self, name), least=0)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, least=0)
        if self.kind.bounded and not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold:g} with mask={self.mask}; expected one in (0, 1)")
        if self.warmup + self.cooldown >= 1:
            raise ValueError(
                f"warmup={self.warmup:g} and cooldown={self.cooldown:g} are fractions of the steps; "
                "expected a sum below 1"
            )

    @property
    def kind(self) -> MaskKind:
        return MASKS[self.mask]

    def tile_of(self, site: Site) -> int | None:
        """Return the side of a site's tiles; None if its units are scored."""
        return self.tile if site.kind in TILED[self.variant] else None

    def penalty_of(self, kind: str) -> float:
        """Return the weight of a kind of sites in the penalty."""
        weight = self.penalties.get(kind)
        if weight is None and kind == "cross_attention":
            weight = self.penalties.get("attention")
        return weight or 0.0

    def rate(self, steps: int) -> float:
        """Return the learning rate of the scores in a training of so many steps."""
        return max(1e-2, 20 / max(steps, 1)) if self.learning_rate is None else self.learning_rate

    def threshold_at(self, due: float) -> float:
        """Return the threshold of scores when this part of the schedule is due, in [0, 1]."""
        if not self.kind.bounded:
            return self.threshold * (2 * due - 1)
        return math.log(share / (1 - share)) if (share := self.threshold * due) else -math.inf
