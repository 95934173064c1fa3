"""Outcomes: what a model did with each question or window, behind the mean that a metric reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cfsp.records.fields import Finite

Kind = Literal["correct", "nats", "share"]


@dataclass(frozen=True)
class Outcomes:
    """One value per item, so that two models can be compared item by item.

    kind: "correct", 1 for a right answer and 0 for a wrong one; "nats", a mean per token of a window;
        "share", a fraction, such as of the tokens of a window.
    items: what was asked, as `item_name` names it. values: in the order of the items.
    """

    kind: Kind
    items: list[str]
    values: list[Finite]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.values):
            raise ValueError(f"outcomes: {len(self.items)} items and {len(self.values)} values")
        if self.kind == "correct" and not {*self.values} <= {0, 1}:
            raise ValueError("outcomes of kind 'correct': expected 0 or 1 for every item")


def item_name(content: Any) -> str:
    """Return a name for a question or a window: a hash of its content, JSON data or bytes."""
    data = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def items_name(items: Iterable[str]) -> str:
    """Return a name for the items of a measurement, in their order."""
    return hashlib.sha256("\n".join(items).encode()).hexdigest()[:12]
