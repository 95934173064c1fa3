"""Protocols: what measurements depend on, told apart and in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LATER = ("tokenizer_sha256", "ends")
"""Keys that records of before lack. They tell two protocols apart only if both have them."""


def differing(protocols: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the keys whose values are not the same in all protocols."""
    found = []
    for key in dict.fromkeys(key for protocol in protocols for key in protocol):
        having = [one for one in protocols if key in one] if key in LATER else protocols
        if len({json.dumps(protocol.get(key)) for protocol in having}) > 1:
            found.append(key)
    return tuple(found)


def comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys by which records are put together; dense figures tell other tokenizers apart."""
    return {key: value for key, value in protocol.items() if key not in LATER}


def in_words(protocol: Mapping[str, Any], key: str) -> str:
    """Return a key and its value; without a number of windows, all were measured."""
    value = protocol.get(key)
    if value is None:
        return f"{key} all" if key == "windows" else f"no {key}"
    return f"{key} {value}"


def counted(number: int, one: str, several: str) -> str:
    """Return a number with the words that go with it: 1 record has, 2 records have."""
    return f"{number} {one if number == 1 else several}"
