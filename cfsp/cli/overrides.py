"""Overrides: what is typed behind `cfsp`, made such that Hydra takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from cfsp.running.build import CONF, choices


def understood(arguments: Sequence[str]) -> list[str]:
    """The arguments, of a sweep those that options of a swept group can be set with.

    Hydra first composes a sweep's config without what is swept, and there misses `recovery/data` in
    `recovery=lora,full recovery/data=text`. As a sweep over one value, it waits for the jobs.

    Raises:
        ValueError: a group is given what is no name.
    """
    try:
        parsed = {one: parse_override(one) for one in arguments if is_override(one)}
    except HydraException:  # which composing explains
        return [*arguments]
    for override in parsed.values():
        check_group(override)
    if not {"-m", "--multirun"} & {*arguments}:
        return [*arguments]
    swept = [one.key_or_group for one in parsed.values() if one.is_sweep_override() and is_group(one)]
    return [waiting(one) if one in parsed and lies_in(parsed[one], swept) else one for one in arguments]


def is_override(argument: str) -> bool:
    """Whether an argument sets something; `--flag=value` and `~key=value` do not."""
    return re.match(r"[+\w]", argument) is not None and "=" in argument


def parse_override(argument: str) -> Override:
    return OverridesParser.create().parse_override(argument)


def is_group(override: Override) -> bool:
    return (CONF / override.key_or_group).is_dir()


def check_group(override: Override) -> None:
    """Raise ValueError if one of our groups is given null, a number or true."""
    if not is_group(override):
        return
    given = override.value()
    for value in given.list if isinstance(given, ChoiceSweep) else [given]:
        if value is None or isinstance(value, bool | int | float):
            names = ", ".join(choices(override.key_or_group))
            raise ValueError(f"{override.key_or_group}={value}: expected the name of a choice: {names}")


def lies_in(override: Override, swept: Sequence[str]) -> bool:
    """Whether it sets one value of something below a swept group."""
    key = override.key_or_group.replace("/", ".")
    below = any(key.startswith(group.replace("/", ".") + ".") for group in swept)
    return below and not override.is_sweep_override()


def waiting(argument: str) -> str:
    """`key=value` as a sweep over this value."""
    key, _, value = argument.partition("=")
    return f"{key}=choice({value})" if value else argument
