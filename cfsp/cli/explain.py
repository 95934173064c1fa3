"""What Hydra refuses, in at most three lines that say what would be accepted, before anything runs."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfsp.cli.catalogue import choices_of, groups, leaves, search_path
from cfsp.options import suggest
from cfsp.running.build import CONF, choices
from cfsp.running.plain import plain

REFUSALS = (HydraException, OmegaConfBaseException)

VALUED = (
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--cfg",
    "-c",
    "--package",
    "-p",
)
"""Flags of Hydra that take a value."""

OTHER_WORK = ("--help", "-h", "--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version")
"""Flags with which Hydra runs no job."""


def check(arguments: Sequence[str]) -> None:
    """Compose what the arguments ask for. Raises ValueError that explains why it cannot be."""
    if {flag.partition("=")[0] for flag in arguments} & {*OTHER_WORK}:
        return
    overrides, config_dir = split(arguments)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ValueError(f"--config-dir {config_dir}: expected a folder of config groups")
    sweeps = bool({"-m", "--multirun"} & {*arguments})
    try:
        for one in each_once(overrides) if sweeps else [overrides]:
            composed(one, config_dir)
    except REFUSALS as error:
        raise ValueError(explain(error, overrides, config_dir)) from error


def show_configs(arguments: Sequence[str]) -> None:
    """Print the config of every job of a sweep. Exit code 1 if one cannot be composed."""
    overrides, config_dir = split(arguments)
    try:
        check([one for one in arguments if one not in ("--cfg", "-c", "job")])
    except ValueError as error:
        raise SystemExit(f"cfsp: error: {error}") from None
    for one in product(*map(values, overrides)):
        print(f"# cfsp {shlex.join(one)}\n{OmegaConf.to_yaml(composed(one, config_dir))}---")


def split(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides among the arguments, and the folder of --config-dir."""
    overrides, config_dir, flag = [], None, None
    for argument in arguments:
        name, _, value = argument.partition("=")
        if flag is not None:
            flag, name, value = None, flag, argument
        elif argument in VALUED:
            flag = argument
            continue
        elif not argument.startswith("-"):
            overrides.append(argument)
        if name in ("--config-dir", "-cd"):
            config_dir = value
    return overrides, config_dir


def composed(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    """The config of one job."""
    more = [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"] if config_dir else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*overrides, *more])


def each_once(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of single jobs: each choice of a group is there once, of other keys the first value."""
    alternatives = [values(one) for one in overrides]
    first = [one[0] for one in alternatives]
    yield first
    for place, others in enumerate(alternatives):
        for other in others[1:] if (CONF / first[place].partition("=")[0].lstrip("+")).is_dir() else ():
            yield [*first[:place], other, *first[place + 1 :]]


def values(override: str) -> list[str]:
    """The overrides of single jobs that an override of a sweep stands for."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return [override]
    prefix = override.partition("=")[0]
    group, value = prefix.lstrip("+"), parsed.value()
    if isinstance(value, Glob):
        return [f"{prefix}={name}" for name in value.filter(choices(group))] or [override]
    return [f"{prefix}={value}" for value in parsed.sweep_string_iterator()]


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str:
    """The message for an error of composing the config."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return unknown_choice(text, config_dir)
    if found := re.match(r"Could not override '([^']+)'", text):
        return unknown_key(found[1], overrides, config_dir)
    if found := re.match(r"Could not delete from config\. '([^']+)'", text):
        return f"~{found[1]}: nothing of that name can be taken out of the config"
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = found[1], found[2]
        listed = shlex.quote(f"{key}=[{value}]")
        return f"{key}={value}: a list is {listed}; a sweep is cfsp -m {key}={value}"
    return " ".join(text.split())


def unreadable(override: str) -> str:
    """For an override that Hydra's grammar does not read."""
    key, sign, value = override.partition("=")
    if not sign:
        return f"{override!r}: expected KEY=VALUE, list, describe or help"
    if value.startswith("[") and value.endswith("]"):
        quoted = ",".join(f'"{item.strip()}"' for item in value[1:-1].split(","))
        whole = shlex.quote(f"{key}=[{quoted}]")
    else:
        whole = shlex.quote(f'{key}="{value}"')
    return (
        f"{override}: expected quotes around a value with = ~ [ ] , : @ spaces or letters outside ASCII:\n"
        f"  {whole}"
    )


def unknown_choice(text: str, config_dir: str | None) -> str:
    """For a choice that a group does not have."""
    found = re.search(r"Could not (?:find|load) '([\w/]+)/([^/']+)'", text)
    if found is None:
        return " ".join(text.split("Config search path")[0].split())
    group, name = found[1], found[2].removesuffix(".yaml")
    there = [choice.name for choice in choices_of(group, search_path(config_dir))]
    return f"{group}={name}: no such choice; {suggest(name, there)}\n  cfsp list {group} says what each is"


def unknown_key(key: str, overrides: Sequence[str], config_dir: str | None) -> str:
    """For a key that the config does not have."""
    known = [*known_keys(overrides, config_dir), *groups(search_path(config_dir))]
    part, dot, name = key.rpartition(".")
    inside = [one.removeprefix(part + dot) for one in known if dot and one.startswith(part + dot)]
    near = difflib.get_close_matches(name, [*dict.fromkeys(inside)] or [*dict.fromkeys(known)], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{key}: no such option{hint}\n  cfsp --help shows all options"


def known_keys(overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Dotted keys of the config with the choices that were made, or of the default one."""
    choices = [one for one in overrides if re.match(r"\+?[\w/]+=[\w/\[]", one)]
    for attempt in (choices, []):
        try:
            whole = plain(composed(attempt, config_dir))
        except REFUSALS:
            continue
        return [*whole, *(key for key, _ in leaves(whole))]
    return []
