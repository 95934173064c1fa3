"""Schemas: check the JSON data of a file against the annotations of the class that it is read into.

A dataclass takes exactly its fields; a TypedDict takes at least its keys. `Annotated[kind, test, "what"]` is
a kind whose values must pass a test; the text says what is accepted. A `float` may be NaN or infinite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from inspect import isclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

T = TypeVar("T")
Place = tuple[str | int, ...]
"""The names and list indices that lead to a value. They become text in errors only, which saves time."""
Reader = Callable[[Any, Place], Any]
"""(data, its place) -> the value that is read. Raises ValueError if the data does not fit."""

DEEPEST = 64
"""Most levels of nested lists and objects: far more than a config has, far fewer than Python can handle."""
NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def load_each(paths: Iterable[Path], load: Callable[[Path], T]) -> tuple[list[T], list[str]]:
    """Load each file. Return the loaded values, and one line of error for each file that failed."""
    found, faults = [], []
    for path in paths:
        try:
            found.append(load(path))
        except (ValueError, OSError) as error:
            faults.append(" ".join(str(error).split()))
    return found, faults


def read_json(path: Path) -> Any:
    """Read the JSON data in a file.

    Raises:
        ValueError: the path is a folder, or the text is not UTF-8, not JSON or nested too deep.
        OSError: the file cannot be read.
    """
    text = ""
    try:
        text = path.read_bytes().decode()
        data = json.loads(text)
    except IsADirectoryError:
        raise ValueError("a folder; expected a file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"nested too deep; expected at most {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        what = "no JSON" if text.strip() else "an empty file; expected JSON"
        raise ValueError(f"{what}: {error}" if text.strip() else what) from None
    if isinstance(data, dict | list):
        check_depth(data)
    if "\\u" in text:
        check_unicode(data)
    return data


def check_depth(data: Any) -> None:
    """Raise ValueError if lists and objects are nested deeper than `DEEPEST` levels."""
    level = [data]
    for _ in range(DEEPEST):
        inner = (one.values() if type(one) is dict else one for one in level)
        level = [value for values in inner for value in values if type(value) in (dict, list)]
        if not level:
            return
    raise ValueError(f"nested too deep; expected at most {DEEPEST} levels")


def check_unicode(data: Any) -> None:
    """Raise ValueError if a text holds half of a surrogate pair, which cannot be written to a file."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair: {error.object[error.start]!r}") from None


def parse(kind: type[T], data: Any) -> T:
    """Convert JSON data to `kind`. Raises ValueError with the place, the value and what is expected."""
    return reader(kind)(data, ())


@cache
def reader(kind: Any) -> Reader:
    """Return the function that reads a kind: a dataclass, a TypedDict, or the annotation of a field."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda data, place: data
    if isclass(kind) and is_dataclass(kind):
        needed = [
            one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING
        ]
        return read_object(get_type_hints(kind, include_extras=True), needed, kind)
    if is_typeddict(kind):
        kinds = get_type_hints(kind, include_extras=True)
        needed = [name for name, one in kinds.items() if get_origin(one) is not NotRequired]
        return read_object(kinds, needed, None)
    if origin is NotRequired:
        return reader(inner[0])
    if origin is Annotated:
        read, *tests = inner[1:] if is_typeddict(inner[1]) else inner
        return read_tested(reader(read), *tests) if tests else reader(read)
    if origin in (Union, UnionType):
        (other,) = [reader(one) for one in inner if one is not NoneType]
        return lambda data, place: None if data is None else other(data, place)
    if origin is Literal:
        return read_choice(inner)
    if origin is list:
        return read_list(reader(inner[0]))
    if origin is Mapping:
        return read_mapping(reader(inner[1]))
    return read_plain(kind)


def read_object(kinds: Mapping[str, Any], needed: Iterable[str], made: Callable[..., Any] | None) -> Reader:
    """Return a reader of objects with known keys. made: the class to construct; None allows other keys."""
    readers, needed = {name: reader(kind) for name, kind in kinds.items()}, [*needed]

    def read(data: Any, place: Place) -> Any:
        expect(isinstance(data, dict), data, place, "an object")
        for name in needed:
            if name not in data:
                raise ValueError(f"{named((*place, name))} is missing")
        if made and data.keys() - readers.keys():
            raise ValueError(f"{named((*place, min(data.keys() - readers.keys())))}: an unknown field")
        known = {
            name: readers[name](value, (*place, name)) if name in readers else value
            for name, value in data.items()
        }
        return made(**known) if made else known

    return read


def read_mapping(value: Reader) -> Reader:
    def read(data: Any, place: Place) -> Any:
        expect(isinstance(data, dict), data, place, "an object")
        return {name: value(one, (*place, name)) for name, one in data.items()}

    return read


def read_list(item: Reader) -> Reader:
    def read(data: Any, place: Place) -> Any:
        expect(isinstance(data, list), data, place, "a list")
        return [item(one, (*place, number)) for number, one in enumerate(data)]

    return read


def read_tested(inner: Reader, test: Callable[[Any], bool], what: str) -> Reader:
    def read(data: Any, place: Place) -> Any:
        found = inner(data, place)
        expect(test(found), data, place, what)
        return found

    return read


def read_choice(choices: tuple[str, ...]) -> Reader:
    def read(data: Any, place: Place) -> Any:
        expect(isinstance(data, str) and data in choices, data, place, " or ".join(choices))
        return data

    return read


def read_plain(kind: type) -> Reader:
    """Return a reader of a text, a boolean, or a number of at most 64 bits."""
    accepted, what = (int, float) if kind is float else (kind,), NAMES[kind]

    def read(data: Any, place: Place) -> Any:
        expect(type(data) in accepted, data, place, what)
        expect(type(data) is not int or abs(data) < 2**63, data, place, f"{what} of at most 64 bits")
        return data

    return read


def expect(met: bool, data: Any, place: Place, what: str) -> None:
    """Raise ValueError with the place, the value and what is expected, unless the condition is met."""
    if not met:
        value = json.dumps(data)
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        raise ValueError(f"{named(place) + ': ' if place else ''}{shown}; expected {what}")


def named(place: Place) -> str:
    """Return a place as text: `metrics.pruned.values[2]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
