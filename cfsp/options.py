"""Options: check what a user gives against the declared types.

All such checks are here: parts of a config, their constructors in Python and `load` use them, so no class can
forget to check a boolean.
"""

from __future__ import annotations

import difflib
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""Type -> its name in messages, singular and plural."""


IMPORTABLE = (
    "run where its package lies, install it, or name the folder that holds it: PYTHONPATH=FOLDER cfsp ..."
)
"""What makes a user's module importable."""


class Checked:
    """A class made from options. Its constructor raises ValueError for an option of the wrong type."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if cls.__init__ is object.__init__ and (args or options):
            raise TypeError(f"{cls.__name__} takes no options, not {', '.join(options) or args}")
        check_call(cls, cls.__init__, (None, *args), options)
        return super().__new__(cls)


def checked(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Make a function raise ValueError for an argument of the wrong type."""

    @wraps(function)
    def call(*args: Given.args, **options: Given.kwargs) -> Made:
        check_call(function, function, args, options)
        return function(*args, **options)

    return call


def check_call(
    target: Callable[..., Any], function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Raise ValueError unless the arguments of a call have the types that `target` declares."""
    types = declared(target)
    for name, value in signature(function).bind_partial(*args, **options).arguments.items():
        if name in types:
            check_option(name, value, types[name])


@lru_cache(maxsize=256)
def declared(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a class or function and their types; Any where none is declared."""
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
    """Return the annotations of a class or function; Any for types imported only for type checkers."""
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
    """Raise ValueError unless a value, or the object that a config describes, is of the declared type."""
    if isinstance(value, Mapping) and "_target_" in value:
        check_part(name, value, declared_type)
    elif isinstance(value, Mapping) and (inner := values_of(declared_type)) is not None:
        for key, one in value.items():
            check_option(f"{name}.{key}", one, inner)
    elif not fits(value, declared_type):
        hint = ", with its _target_" if isinstance(value, Mapping) else ""
        raise ValueError(f"{name}={shown(value)}: expected {spelled(declared_type)}{hint}")


def check_part(name: str, config: Mapping[str, Any], declared_type: Any = Any) -> None:
    """Check the `_target_` of a config and all its options, nested ones too.

    Raises:
        ValueError: the target cannot be imported or is not of the declared type; an option is unknown,
            missing or of the wrong type.
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


def hint(name: object, known: Iterable[str], most: int = 1, before: str = "") -> str:
    """The end of an error about an unknown name: "; did you mean 'x'?", or nothing if none is near.

    before: what to put before each name that is shown.
    """
    near = difflib.get_close_matches(str(name), [*dict.fromkeys(known)], n=most)
    quoted = [repr(before + one) if most == 1 else before + one for one in near]
    return f"; did you mean {' or '.join(quoted)}?" if near else ""


def suggest(name: str, there: Sequence[str]) -> str:
    """Return a hint for an unknown name: the nearest names, else all."""
    near = hint(name, there, most=3).removeprefix("; ")
    return near or f"expected one of {', '.join(there) or '(none)'}"


def unknown(name: str, value: Any, known: Sequence[str]) -> str:
    """Return the message for an unknown option."""
    meant = hint(name.rsplit(".", 1)[-1], known)
    return f"{name}={shown(value)}: no such option; expected one of {', '.join(known) or '(none)'}{meant}"


def imported(name: str, path: Any) -> Callable[..., Any]:
    """Import the class or function at a dotted path. Raises ValueError if there is none."""
    try:
        found = resolve_name(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name}={shown(path)}: expected a class or function that can be imported ({error}); {IMPORTABLE}"
        ) from error
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name}={shown(path)}: expected a class or function that can be imported ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"{name}={shown(path)}: expected a class or function that can be imported")
    return found


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type. A boolean is not a number; an int is also a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is float:
        whole = isinstance(value, int) and type(value) is not bool  # isfinite fails for huge ints
        return whole or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return type(value) is not bool and isinstance(value, int)
    if isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values())
    if isclass(origin) and issubclass(origin, Sequence):
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and all(fits(one, inner[0]) for one in value)
    return isinstance(value, kind) if isclass(kind) and kind is not Any else True  # no config holds others


def made_fits(target: Callable[..., Any], kind: Any) -> bool:
    """Return whether a class or function makes a value of a type; True if its return type is not declared."""
    made = target if isclass(target) else hints(target).get("return", Any)
    made = get_origin(made) or made
    if get_origin(kind) is Annotated:
        return made_fits(target, get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return any(made_fits(target, one) for one in get_args(kind))
    wanted = get_origin(kind) or kind
    if made is Any or not isclass(made) or kind is Any:  # Any is a class since Python 3.11
        return True
    return isclass(wanted) and issubclass(made, wanted)


def values_of(kind: Any) -> Any:
    """Return the type of a mapping's values; None if the type is not a mapping."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType, Annotated):
        return next((found for one in inner if (found := values_of(one)) is not None), None)
    return inner[1] if isclass(origin) and issubclass(origin, Mapping) else None


def spelled(kind: Any, several: bool = False) -> str:
    """Return the name of a type in messages."""
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
    """Return a value's repr on one line, truncated to 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
