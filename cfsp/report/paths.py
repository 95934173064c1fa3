"""Paths on pages: short, distinct, never absolute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

PART = r"[^\s/'\"<>,;:()\[\]{}=]+"
ABSOLUTE = re.compile(
    rf"(?:file://|(?<![\w.~…/-]))/(?:{PART}/)+(?P<last>{PART})?|(?<=[='\"])/(?P<only>{PART})"
)
"""A path from the root. It does not match the rest of a URL or a slash between words."""

UNTOLD = re.compile(r"hf|model|models|final|best|last|snapshots|[0-9a-f]{40}")
"""Names of folders that do not describe the model in them."""


def hide_paths(text: str) -> str:
    """Cut absolute paths in a text to their last part, because a page's readers have other disks."""
    return (
        ABSOLUTE.sub(lambda found: f"…/{found['last'] or found['only'] or ''}", text) if "/" in text else text
    )


def without_paths(data: Any) -> Any:
    """Cut absolute paths in JSON data to their last part."""
    if isinstance(data, str):
        return f"…/{data.rstrip('/').rpartition('/')[2]}" if data.startswith("/") else hide_paths(data)
    if isinstance(data, dict):
        return {key: without_paths(value) for key, value in data.items()}
    return [without_paths(value) for value in data] if isinstance(data, list) else data


def model_names(paths: Iterable[str]) -> dict[str, str]:
    """Return path or hub id -> model name: the last descriptive part, and more parts to distinguish names."""
    return distinct_ends({path: told(path) for path in paths})


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Return path -> its last part, with as many parts before it as distinguish it from the others."""
    return distinct_ends({path: parts(path) for path in paths})


def parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part] or [path]


def told(path: str) -> list[str]:
    """Return the parts of a model's path up to its name. The hub's cache names folders after models."""
    found = parts(path)
    end = next((place for place in range(len(found), 0, -1) if not UNTOLD.fullmatch(found[place - 1])), 0)
    kept = found[:end] or found
    return [part.rpartition("--")[2] if part.startswith("models--") else part for part in kept]


def distinct_ends(whole: dict[str, Sequence[str]]) -> dict[str, str]:
    """Return the shortest unique end of each. Equal ones get all parts of the path."""
    longest = max(map(len, whole.values()), default=1)
    found = {}
    for length in range(1, longest + 1):
        ends = {path: "/".join(some[-length:]) for path, some in whole.items()}
        counts = Counter(ends.values())
        for path, end in ends.items():
            if path not in found and counts[end] == 1:
                found[path] = end
    return {path: found.get(path) or "/".join(parts(path)) for path in whole}
