"""Protocols: what measurements depend on, told apart and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def differing(protocols: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the keys whose values are not the same in all protocols."""
    return tuple(
        key
        for key in dict.fromkeys(key for protocol in protocols for key in protocol)
        if len({json.dumps(protocol.get(key)) for protocol in protocols}) > 1
    )


def in_words(protocol: Mapping[str, Any], key: str) -> str:
    """Return a key and its value; without a number of windows, all were measured."""
    value = protocol.get(key)
    if value is None:
        return f"{key} all" if key == "windows" else f"no {key}"
    return f"{key} {value}"


def counted(number: int, one: str, several: str) -> str:
    """Return a number with the words that go with it: 1 record has, 2 records have."""
    return f"{number} {one if number == 1 else several}"
