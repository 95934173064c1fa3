"""Names of methods: short names that distinguish records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from cfsp.records.identity import method_name
from cfsp.records.record import Record
from cfsp.report.paths import short_paths
from cfsp.tables.compare import part_name

PARTS = (
    "criterion",
    "allocator",
    "compensation",
    "schedule",
    "recovery",
    "sites",
    "sparsity_of",
    "calibration",
)
"""Parts of a config that define a method, the most important for a name first."""

IDLE = {"compensation": "none", "recovery": "none", "schedule": "one_shot"}
"""Choices that do nothing. Names omit them."""

NOT_METHOD = ("seed", "sparsity", "sparsity_of", "active")
"""Options that components share with the run. They are axes of a study and make no other method."""


def method_names(records: Sequence[Record]) -> dict[str, str]:
    """Return record id -> method name: the criterion and the fewest other parts that distinguish all methods.

    In place of a criterion that a schedule learns stands the schedule, or the maker of its routers.

    Names omit parts that are the same in all records. A part has the name of its YAML file. Brackets hold
    the options that differ between records with this part: `magnitude(consumers) / uniform`. Parts that do
    nothing are omitted, unless the name would be empty.
    """
    columns = {part: part_texts([record.config for record in records], part) for part in PARTS}
    varying = [part for part in PARTS if len(set(columns[part])) > 1]
    must = [part for part in varying if part == "criterion"]
    rest = [part for part in varying if part != "criterion"]
    whole = len(set(zip(*columns.values(), strict=True)))
    for count in range(len(rest) + 1):
        for more in combinations(rest, count):
            chosen = [*must, *more] or ["criterion"]
            rows = [*zip(*(columns[part] for part in chosen), strict=True)]
            if len(set(rows)) == whole:
                names = {row: joined_name(chosen, row) for row in rows}
                if len(set(names.values())) < whole:
                    names = {row: " / ".join(row) for row in rows}
                return {record.id: names[row] for record, row in zip(records, rows, strict=True)}
    raise AssertionError("all parts together tell apart what all parts together tell apart")


def joined_name(parts: Sequence[str], texts: Sequence[str]) -> str:
    """Return the joined texts of the parts that do something; the last text if none does."""
    told = [text for part, text in zip(parts, texts, strict=True) if IDLE.get(part) != text]
    return " / ".join(told) or texts[-1]


def part_texts(configs: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Return the name of a part in each config. Names omit options that are off or empty."""
    names = [
        method_name(config) if part == "criterion" else short_name(config.get(part), part)
        for config in configs
    ]
    options = [dict(leaves_of_part(config.get(part))) for config in configs]
    peers: dict[str, list[Mapping[str, Any]]] = {}  # name -> the options of each config that has it
    for name, own in zip(names, options, strict=True):
        peers.setdefault(name, []).append(own)
    paths = short_paths({one for own in options for value in own.values() for one in paths_in(value)})
    texts = []
    for name, own in zip(names, options, strict=True):
        differing = [key for key in own if own[key] not in (None, []) and count_values(peers[name], key) > 1]
        listed = ", ".join(option_text(key, own[key], paths) for key in differing)
        if listed and len(set(names)) == 1 and part != "criterion":
            texts.append(listed)  # all configs have the same part, so its name is omitted
        else:
            texts.append(f"{name}({listed})" if listed else name)
    return texts


def count_values(peers: Sequence[Mapping[str, Any]], key: str) -> int:
    """Return how many values an option has in configs of one part.

    A config without it is older than the option. That is a value of its own, unless others have it off:
    what an option does when it is off was all that there was before.
    """
    values = [one[key] for one in peers if key in one]
    off = any(value is None or value is False or value == [] for value in values)
    return len({*map(str, values)}) + (len(values) < len(peers) and not off)


def short_name(config: Any, part: str) -> str:
    """Return the name of a part; "none" for a config without it, which is older than the part."""
    if config is None:
        return "none"
    if isinstance(config, str):
        return f"of {config}"
    return part_name(config) if isinstance(config, Mapping) else "+".join(config)


def leaves_of_part(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options of a part by dotted path. Classes are named by `part_name`."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if key in NOT_METHOD:
            continue
        if isinstance(value, Mapping):
            yield from leaves_of_part(value, f"{path}{key}.")
        elif key != "_target_":
            yield f"{path}{key}", value
        elif path:
            yield path.removesuffix("."), part_name(config)


def paths_in(value: Any) -> list[str]:
    """Return the paths in an option, which is one value or a list."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, str) and "/" in one]


def option_text(key: str, value: Any, paths: Mapping[str, str]) -> str:
    """Return an option as text: a word alone, a number with its name. paths: path -> short name."""
    if isinstance(value, list):
        value = "+".join(paths.get(one, one) if isinstance(one, str) else str(one) for one in value)
    return paths.get(value, value) if isinstance(value, str) else f"{key.rsplit('.', 1)[-1]}={value}"
