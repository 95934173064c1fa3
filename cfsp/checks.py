"""Checks of what a user gave: one line that says what would be accepted."""

from __future__ import annotations

from collections.abc import Iterable


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError that lists the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
