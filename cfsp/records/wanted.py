"""Wanted: what a run was asked to end with, a share to remove or to use, or a target, as number and text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfsp.checks import check_integer

SHAPES = {
    "parameters": (),
    "memory": ("batch", "context"),
    "macs": ("tokens",),
    "latency": ("batch", "tokens"),
}
"""Kind of a target -> the options that say of what it is."""

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
DECIMAL = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BINARY = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
UNITS = {"parameters": COUNTS, "memory": {"": 1.0} | DECIMAL | BINARY, "macs": COUNTS, "latency": SECONDS}
EXPECTED = {
    "parameters": "a number above 0, or one with k, M, B (1e9) or T: 100e6, 100M",
    "memory": "bytes above 0, or a number with B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB or TiB (of "
    "1024): 2GiB",
    "macs": "a number above 0, or one with k, M, G or T: 40e9, 40G",
    "latency": "a share of the dense model's seconds, below 1, or a number with us, ms or s: 0.8, 120ms",
}
NUMBER = re.compile(r"\s*(?P<number>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*(?P<unit>[A-Za-z]*)\s*")


@dataclass(frozen=True, order=True)
class Wanted:
    """What a run was asked to end with. Sorts by kind, then from the largest model to the smallest.

    kind: "sparsity", "active" (the share of its MLPs' units that a token of a routed model uses) or a key of
    `SHAPES`. less: the share to remove, or minus the amount. shape: the options that say of what the amount
    is. relative: whether the amount is a share of what the dense model has.
    """

    kind: str
    less: float
    shape: tuple[tuple[str, int], ...] = ()
    relative: bool = False

    @property
    def amount(self) -> float:
        """The most that the pruned model may have; of a sparsity, the share to remove."""
        return abs(self.less)

    @property
    def key(self) -> str:
        """What a user types, in the same words for the same amount: `target.memory=2GiB`."""
        return f"target.{self.kind}={self.spelled(self.amount)}"

    def spelled(self, amount: float) -> str:
        """Return an amount of this kind with its unit, without spaces."""
        if self.kind in ("sparsity", "active"):
            return f"{100 * amount:.4g}%"
        if self.kind == "latency":
            return f"{amount:.15g}" if self.relative else f"{1000 * amount:.15g}ms"
        units = [(unit, size) for unit, size in UNITS[self.kind].items() if size <= max(amount, 1)]
        other = {"parameters": "G", "macs": "B", "memory": ""}[self.kind]  # a unit of the same size
        return min((f"{amount / size:.15g}{unit}" for unit, size in units if unit != other), key=len)

    def enough(self, amount: float) -> str:
        """Return an amount as `spelled` does; one that was timed, rounded up to three digits."""
        if self.kind == "latency" and amount > 0:
            digit = 10.0 ** (math.floor(math.log10(amount)) - 2)
            amount = math.ceil(amount / digit * (1 - 1e-12)) * digit
        return self.spelled(amount)

    @property
    def text(self) -> str:
        """The amount and what it is of, as a heading."""
        amount, shape = self.spelled(self.amount), dict(self.shape)
        if self.kind == "latency":
            share = f"{100 * self.amount:.4g}% of the seconds" if self.relative else amount
            return f"{share} of {shape['batch']} x {shape['tokens']} tokens"
        if self.kind == "memory":
            return f"{amount} with {shape['batch']} x {shape['context']} tokens"
        if self.kind == "macs":
            return f"{amount} MACs of {shape['tokens']} tokens"
        return f"{amount} {self.kind}" if self.kind in ("parameters", "active") else amount

    @property
    def data(self) -> dict[str, float | int | str]:
        """The target as a config that gives the same one however it was typed; empty for a share."""
        if self.kind not in SHAPES:
            return {}
        amount = self.spelled(self.amount) if self.kind == "latency" and not self.relative else self.amount
        return {self.kind: amount} | dict(self.shape)


def wanted_of(config: Mapping[str, Any]) -> Wanted:
    """Return what the config of a run asks for. Older configs have no targets. Raises ValueError."""
    if (target := target_of(config.get("target"))) is not None:
        return target
    active = config.get("schedule", {}).get("active")
    return Wanted("sparsity", config["sparsity"]) if active is None else Wanted("active", -active)


def target_of(options: Mapping[str, Any] | None) -> Wanted | None:
    """Return the target that a config's `target` names; None if it names none.

    Raises ValueError if it names two, an unknown one, or an amount that is none.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"target={options!r}: expected one of {target_names()}")
    known = {*SHAPES, *(name for names in SHAPES.values() for name in names)}
    for name in options:
        if name not in known:
            raise ValueError(f"target.{name}: no such target; expected one of {target_names()}")
    asked = [name for name in SHAPES if options.get(name) is not None]
    if not asked:
        return None
    if len(asked) > 1:
        both = " beside ".join(f"target.{name}={options[name]}" for name in asked)
        raise ValueError(f"{both}: expected one target; the others null")
    (kind,) = asked
    amount, relative = amount_of(kind, options[kind])
    for name in SHAPES[kind]:
        check_integer(f"target.{name}", options.get(name), least=1)
    shape = tuple((name, options[name]) for name in SHAPES[kind])
    return Wanted(kind, -amount, shape, relative)


def target_names() -> str:
    return ", ".join(f"target.{kind}" for kind in SHAPES)


def amount_of(kind: str, value: Any) -> tuple[float, bool]:
    """Return an amount in parameters, bytes, MACs or seconds, and whether it is a share of the dense model's.

    Raises ValueError, with the units that are accepted.
    """
    number, unit = value, ""
    if isinstance(value, str) and (parts := NUMBER.fullmatch(value)):
        number, unit = float(parts["number"]), parts["unit"]
    relative = kind == "latency" and unit == ""
    units = {"": 1.0} if relative else UNITS[kind]
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or unit not in units or not 0 < number < (1 if relative else math.inf):
        raise ValueError(f"target.{kind}={value}: expected {EXPECTED[kind]}")
    return number * units[unit], relative
