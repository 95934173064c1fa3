"""Checks of ranges. Each error says what is accepted. `cfsp.options` checks types."""

from __future__ import annotations

import math
from collections.abc import Iterable


class UnknownName(KeyError):
    """A user gave a name that does not exist; any other KeyError is a bug."""

    def __str__(self) -> str:
        return self.args[0]  # KeyError itself shows the repr of its argument


def check_choice(name: str, value: object, choices: Iterable[str | None]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        names = ", ".join("null" if choice is None else choice for choice in choices)
        raise ValueError(f"{name}={value!r}: expected one of {names}")


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`, and at most `most`."""
    upper = math.inf if most is None else most
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= upper:
        upto = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}{upto}")


def check_seed(name: str, value: object) -> None:
    """Raise ValueError unless the value is a seed that NumPy accepts; transformers seeds NumPy too."""
    check_integer(name, value, least=0, most=2**32 - 1)


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise ValueError unless the value is a finite number of at least `least`, and at most `most`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not number or value == math.inf:
        upto = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}={value!r}: expected a number of at least {least:g}{upto}")
