"""Protocols: what measurements depend on, told apart and in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LATER = ("tokenizer_sha256", "ends")
"""Keys that records of before lack. They tell two protocols apart only if both have them."""

FILES = "questions"
"""The key of the names of local files of questions, which tell no protocols apart: their hash does."""

HASHES = {
    "files_sha256": "the questions come from different files",
    "text_sha256": "the texts are not the same",
    "tokens_sha256": "the tokens that the model reads are not the same",
    "tokenizer_sha256": "the tokenizers are not the same",
    "template_sha256": "the chat templates are not the same",
}
"""Key of a hash -> what it means that two protocols differ in it."""


def differing(protocols: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the keys whose values are not the same in all protocols."""
    found = []
    for key in dict.fromkeys(key for protocol in protocols for key in protocol if key != FILES):
        having = [one for one in protocols if key in one] if key in LATER else protocols
        if len({json.dumps(protocol.get(key)) for protocol in having}) > 1:
            found.append(key)
    return tuple(found)


def difference_words(protocols: Sequence[Mapping[str, Any]], subject: str = "the protocols") -> str:
    """Return in words what the protocols differ in; "" if in nothing. subject: what the words are about."""
    keys = differing(protocols)
    named = [key for key in keys if key not in HASHES]
    found = [f"{subject} differ in {', '.join(named)}"] if named else []
    for key in (key for key in keys if key in HASHES):
        files = named_files(protocols) if key == "files_sha256" else {}
        found.append(HASHES[key] + "".join(f" ({names})" for names in files.values()))
    return "; ".join(found)


def named_files(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the names of the files of questions, as an entry of a protocol; nothing without any."""
    names = sorted({one[FILES] for one in protocols if FILES in one})
    return {FILES: " or ".join(names)} if names else {}


def comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys by which records are put together; dense figures tell other tokenizers apart."""
    return {key: value for key, value in protocol.items() if key not in (*LATER, FILES)}


def in_words(protocol: Mapping[str, Any], key: str) -> str:
    """Return a key and its value; without a number of windows, all were measured."""
    value = protocol.get(key)
    if key == "files_sha256" and value:
        names = f"{protocol[FILES]} " if FILES in protocol else ""
        return f"questions {names}({hash_text(value)})"
    if key == "files_sha256":
        return "questions of the data set"
    if key in HASHES:
        return f"{key.removesuffix('_sha256')} {hash_text(value)}"
    if value is None:
        return f"{key} all" if key == "windows" else f"no {key}"
    return f"{key} {value}"


def hash_text(value: Any) -> str:
    """Return the beginning of a hash, or of those of several files; "none" without one."""
    hashes = [*value.values()] if isinstance(value, Mapping) else [value] * bool(value)
    return "+".join(str(one)[:8] for one in hashes) or "none"


def counted(number: int, one: str, several: str) -> str:
    """Return a number with the words that go with it: 1 record has, 2 records have."""
    return f"{number} {one if number == 1 else several}"
