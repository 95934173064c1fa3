"""What Hydra and OmegaConf refuse, in at most three lines that say what would be accepted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfsp.build import CONF
from cfsp.checks import suggest
from cfsp.commands.catalogue import choices_of, groups, leaves, search_path

REFUSALS = (HydraException, OmegaConfBaseException)
WORDS = ("list", "describe", "help")


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None) -> str:
    """The message for an error of composing the config."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return unknown_choice(error, overrides, config_dir)
    if found := re.match(r"Could not (?:override|delete from config\.?) '([^']+)'", text):
        return unknown_key(found[1], overrides)
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = found[1], found[2]
        return (
            f"{key}={value}: expected one value, a list in brackets, or a sweep\n"
            f"  a list:  cfsp {shlex.quote(f'{key}=[{value}]')}\n  a sweep: cfsp -m {key}={value}"
        )
    return " ".join(text.split())


def unreadable(override: str) -> str:
    """For an override that Hydra's grammar does not read."""
    key, sign, value = override.partition("=")
    if not sign:
        return (
            f"{override!r}: expected KEY=VALUE\n"
            f"  cfsp list shows the choices, cfsp describe GROUP=CHOICE their options"
        )
    items = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else None
    quoted = f'"{value}"' if items is None else "[" + ",".join(f'"{item.strip()}"' for item in items) + "]"
    return (
        f"{override}: expected quotes around a value with = ~ [ ] , : or letters that are not ASCII\n"
        f"  cfsp {shlex.quote(f'{key}={quoted}')}"
    )


def unknown_choice(error: MissingConfigException, overrides: Sequence[str], config_dir: str | None) -> str:
    """For a choice that a group does not have."""
    missing = re.search(r"'([^']+/[^'/]+)'", str(error)) if error.missing_cfg_file is None else None
    group, _, name = (missing[1] if missing else str(error.missing_cfg_file)).rpartition("/")
    there = [choice.name for choice in choices_of(group, search_path(config_dir))]
    if not there:
        return unknown_key(group or name, overrides)
    return f"{group}={name}: no such choice; {suggest(name, there)}\n  cfsp list {group} says what each of them is"


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """For a key that the config does not have."""
    known = [*known_keys(overrides), *groups(search_path(None))]
    return f"{key}: no such option; {suggest(key, known)}\n  cfsp --help shows all options"


def known_keys(overrides: Sequence[str]) -> list[str]:
    """Dotted keys of the config that the overrides choose, or of the default one."""
    chosen = [one for one in overrides if "." not in one.partition("=")[0] and "," not in one]
    for attempt in (chosen, []):
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                whole = OmegaConf.to_container(compose("config", attempt))
            return [*whole, *(key for key, _ in leaves(whole))]
        except REFUSALS:
            continue
    return []
