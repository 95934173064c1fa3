"""Checks of what a user gave: one line that says what would be accepted."""

from __future__ import annotations

import math
from collections.abc import Iterable


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError that lists the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def check_integer(name: str, value: object, least: int) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")


def check_number(name: str, value: object, least: float) -> None:
    """Raise ValueError unless the value is a finite number of at least `least`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:
        raise ValueError(f"{name}={value!r}: expected a number of at least {least:g}")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless the value is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected true or false")
