"""Options of LHSPG, the pruner by low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.options import Checked
from cfsp.training.half_space import PROXIES

VARIANTS = ("paper", "linear_decay")


@dataclass(frozen=True, kw_only=True)
class LHSPGOptions(Checked):
    """When units shrink, and by which saliency they are chosen; see `cfsp.training.lhspg.LHSPG`."""

    periods: int = 5
    variant: str = "paper"
    warmup: float = 0.1
    cooldown: float = 0.0
    epsilon: float = 0.0
    proxies: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PROXIES, 0.2))

    def __post_init__(self) -> None:
        check_integer("periods", self.periods, least=1)
        check_choice("variant", self.variant, VARIANTS)
        for name in ("warmup", "cooldown", "epsilon"):
            check_number(name, getattr(self, name), least=0)
        if not self.warmup or self.warmup + self.cooldown >= 1:
            raise ValueError(
                f"warmup={self.warmup:g} and cooldown={self.cooldown:g} are fractions of the steps; expected "
                "a warmup above 0, before which adapters say nothing, and a sum below 1"
            )
        if self.epsilon >= 1:
            raise ValueError(f"epsilon={self.epsilon:g}: expected a number in [0, 1)")
        for proxy, weight in self.proxies.items():
            check_choice("proxies", proxy, PROXIES)
            check_number(f"proxies.{proxy}", weight, least=0)
        if not sum(self.proxies.values()):
            raise ValueError(f"proxies={dict(self.proxies)}: expected a weight above 0 for one of {PROXIES}")

    def check_length(self, steps: int, units: int) -> None:
        if self.periods > units > 0:
            raise ValueError(
                f"periods={self.periods}, but at most {units} units are to go; expected at most "
                f"periods={units}, or a higher sparsity"
            )
        ends = self.ends(steps)
        if ends[0] < 1 or any(end <= first for first, end in pairwise(ends)):
            raise ValueError(
                f"periods={self.periods} and the warm-up do not fit into {steps} steps with "
                f"warmup={self.warmup:g} and cooldown={self.cooldown:g}; expected a step for each, so more "
                "steps or fewer periods"
            )

    def ends(self, steps: int) -> list[int]:
        """Return the last step of the warm-up, then that of every period."""
        first, last = round(self.warmup * steps), steps - round(self.cooldown * steps)
        return [first + (last - first) * period // self.periods for period in range(self.periods + 1)]
