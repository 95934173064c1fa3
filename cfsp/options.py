"""Options: what a user gives, held against the types that it is declared with.

The one place for that. A part of a config, its constructor in Python and `load` all come here, so no class
can forget to check a boolean.
"""

from __future__ import annotations

import difflib
import math
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from inspect import Parameter, isclass, signature, unwrap
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

Given = ParamSpec("Given")
Made = TypeVar("Made")

WORDS = {
    bool: ("true or false", "true or false each"),
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    NoneType: ("null", "nulls"),
}
"""What a value of a type is called: one, and several."""


class Checked:
    """What is made from options. Raises ValueError for one of another type than declared."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if cls.__init__ is object.__init__ and (args or options):
            raise TypeError(f"{cls.__name__} takes no options, not {', '.join(options) or args}")
        check_call(cls, cls.__init__, (None, *args), options)
        return super().__new__(cls)


def checked(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Let a function raise ValueError if an argument is of another type than declared."""

    @wraps(function)
    def call(*args: Given.args, **options: Given.kwargs) -> Made:
        check_call(function, function, args, options)
        return function(*args, **options)

    return call


def check_call(
    target: Callable[..., Any], function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Check what a function is called with against the types that `target` declares."""
    types = declared(target)
    for name, value in signature(function).bind_partial(*args, **options).arguments.items():
        if name in types:
            check_option(name, value, types[name])


@lru_cache(maxsize=256)
def declared(target: Callable[..., Any]) -> dict[str, Any]:
    """The options of a class or a function, and the type of each; Any where none is declared."""
    source = target.__init__ if isclass(target) and not is_dataclass(target) else target
    types = hints(source)
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    parameters = signature(target.__init__ if isclass(target) else target).parameters
    return {
        name: types.get(name, Any)
        for name, parameter in parameters.items()
        if parameter.kind in named and name != "self"
    }


def hints(source: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class or a function; Any where one is imported for type checkers alone."""
    found: dict[str, Any] = {}
    for owner in reversed(source.__mro__) if isclass(source) else [unwrap(source)]:
        home = getattr(owner, "__module__", "")  # object.__init__ has none
        module = sys.modules.get(home, typing)
        names = getattr(owner, "__globals__", vars(module))
        for name, kind in getattr(owner, "__annotations__", {}).items():
            alone = type("Alone", (), {"__annotations__": {name: kind}})
            try:
                found |= get_type_hints(alone, names, include_extras=True)
            except NameError:
                found[name] = Any
    return found


def check_option(name: str, value: Any, declared_type: Any) -> None:
    """Raise ValueError unless a value, or what a config says is to be made, is of the declared type."""
    if isinstance(value, Mapping) and "_target_" in value:
        check_part(name, value, declared_type)
    elif isinstance(value, Mapping) and (inner := values_of(declared_type)) is not None:
        for key, one in value.items():
            check_option(f"{name}.{key}", one, inner)
    elif not fits(value, declared_type):
        hint = ", with its _target_" if isinstance(value, Mapping) else ""
        raise ValueError(f"{name}={shown(value)}: expected {spelled(declared_type)}{hint}")


def check_part(name: str, config: Mapping[str, Any], declared_type: Any = Any) -> None:
    """Check what a config says is to be made, and all below it.

    Raises:
        ValueError: it cannot be imported or is nothing of the declared type; an option is unknown, missing
            or of another type than declared.
    """
    target = imported(f"{name}._target_", config["_target_"])
    if not made_fits(target, declared_type):
        raise ValueError(f"{name}._target_={config['_target_']}: expected {spelled(declared_type)}")
    types, function = declared(target), target.__init__ if isclass(target) else target
    parameters = signature(function).parameters.values()
    any_name = function is not object.__init__ and any(one.kind is one.VAR_KEYWORD for one in parameters)
    for key, value in config.items():
        if key in types or (any_name and not key.startswith("_")):
            check_option(f"{name}.{key}", value, types.get(key, Any))
        elif key != "_target_":
            raise ValueError(unknown(f"{name}.{key}", value, [*types]))
    for one in parameters:
        if one.name in types and one.default is one.empty and one.name not in config:
            raise ValueError(f"{name}.{one.name} is missing: expected {spelled(types[one.name])}")


def unknown(name: str, value: Any, known: Sequence[str]) -> str:
    """What to tell of an option that nothing has."""
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name}={shown(value)}: no such option; expected one of {', '.join(known) or '(none)'}{hint}"


def suggest(name: str, there: Sequence[str]) -> str:
    """What could have been meant: the nearest names, else all."""
    near = difflib.get_close_matches(name, [*dict.fromkeys(there)], n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(there) or '(none)'}"


def imported(name: str, path: Any) -> Callable[..., Any]:
    """The class or function of a dotted path. Raises ValueError if there is none."""
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name}={shown(path)}: expected a class or function that can be imported ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"{name}={shown(path)}: expected a class or function that can be imported")
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type. A boolean is no number; a whole number is a number."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is float:
        whole = isinstance(value, int) and type(value) is not bool  # of any size, which isfinite cannot take
        return whole or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return type(value) is not bool and isinstance(value, int)
    if isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values())
    if isclass(origin) and issubclass(origin, Sequence):
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and all(fits(one, inner[0]) for one in value)
    return isinstance(value, kind) if isclass(kind) and kind is not Any else True  # what no config can hold


def made_fits(target: Callable[..., Any], kind: Any) -> bool:
    """Whether what a class or function makes is of a type, as far as it is declared."""
    made = target if isclass(target) else hints(target).get("return", Any)
    made = get_origin(made) or made
    if get_origin(kind) is Annotated:
        return made_fits(target, get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return any(made_fits(target, one) for one in get_args(kind))
    wanted = get_origin(kind) or kind
    return not isclass(made) or kind is Any or (isclass(wanted) and issubclass(made, wanted))


def values_of(kind: Any) -> Any:
    """The type of a mapping's values; None if the type is no mapping."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType, Annotated):
        return next((found for one in inner if (found := values_of(one)) is not None), None)
    return inner[1] if isclass(origin) and issubclass(origin, Mapping) else None


def spelled(kind: Any, several: bool = False) -> str:
    """What a type is called."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return inner[1]
    if kind in WORDS:
        return WORDS[kind][several]
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(spelled(one, several) for one in inner))
    if isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping of names to {spelled(inner[1], several=True)}"
    if isclass(origin) and issubclass(origin, Sequence):
        return f"a list of {spelled(inner[0], several=True)}"
    name = getattr(kind, "__name__", str(kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value on one line, cut off where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
