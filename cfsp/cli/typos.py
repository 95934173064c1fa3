"""Typos: explain Hydra's errors in at most three lines that say what is accepted, before anything runs."""

from __future__ import annotations

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

from cfsp.cli.catalogue import DEFAULT, choices_of, groups, leaf_options, main_config
from cfsp.cli.early import check_early
from cfsp.cli.overrides import CommandLine, without_flag
from cfsp.options import hint, suggest
from cfsp.running.build import CONF, choices
from cfsp.running.plain import plain

REFUSALS = (HydraException, OmegaConfBaseException)

OTHER_WORK = ("--help", "-h", "--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version")
"""Flags with which Hydra runs no job."""


def check(arguments: Sequence[str]) -> None:
    """Compose the config that the arguments ask for, and check early what a single run will check.

    Raises:
        ValueError: that fails; the message explains it.
    """
    if {flag.partition("=")[0] for flag in arguments} & {*OTHER_WORK}:
        return
    line = CommandLine.of(arguments)
    if line.config_dir is not None and not Path(line.config_dir).is_dir():
        raise ValueError(f"--config-dir {line.config_dir}: expected a folder of config groups")
    try:
        configs = [composed(one, line) for one in (each_once(line) if line.sweeps else [line.overrides])]
    except REFUSALS as error:
        raise ValueError(explain(error, line)) from error
    if not line.sweeps and without_flag(arguments, ("--cfg", "-c"))[1] is None:
        check_early(configs[0])


def show_configs(arguments: Sequence[str]) -> None:
    """Print the config of every job of a sweep. Exit code 1 if one cannot be composed."""
    rest, wanted = without_flag(arguments, ("--cfg", "-c"))
    line = CommandLine.of(rest)
    try:
        if wanted != "job":
            raise ValueError(f"--cfg {wanted} of a sweep: expected --cfg job, or no -m")
        check(rest)
    except ValueError as error:
        raise SystemExit(f"cfsp: error: {error}") from None
    for one in product(*(values(override, line) for override in line.overrides)):
        print(f"# cfsp {shlex.join(one)}\n{OmegaConf.to_yaml(composed(one, line))}---")


def composed(overrides: Sequence[str], line: CommandLine) -> DictConfig:
    """Return the config of one job."""
    folders = [folder.absolute() for folder in reversed(line.folders)]
    home = next((one for one in folders if (one / f"{line.config_name}.yaml").is_file()), CONF)
    more = [f"hydra.searchpath=['file://{one}']" for one in folders if one != home]
    with initialize_config_dir(str(home), version_base="1.3"):
        return compose(line.config_name, [*overrides, *more])


def each_once(line: CommandLine) -> Iterator[list[str]]:
    """Yield overrides of single jobs that cover each choice of a group once; other keys have one value."""
    alternatives = [values(one, line) for one in line.overrides]
    first = [one[0] for one in alternatives]
    yield first
    for place, others in enumerate(alternatives):
        for other in others[1:] if line.has_group(first[place].partition("=")[0].lstrip("+")) else ():
            yield [*first[:place], other, *first[place + 1 :]]


def values(override: str, line: CommandLine) -> list[str]:
    """Return the overrides of single jobs that an override of a sweep stands for.

    Raises:
        ValueError: the sweep's values cannot be listed.
    """
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return [override]
    prefix = override.partition("=")[0]
    group, value = prefix.lstrip("+"), parsed.value()
    if isinstance(value, Glob):
        return [f"{prefix}={name}" for name in value.filter(choices(group, line.folders))] or [override]
    try:
        return [f"{prefix}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException as error:
        raise ValueError(
            f"{override}: its values cannot be listed ({error}); expected values, range, choice or glob"
        ) from error


def explain(error: Exception, line: CommandLine) -> str:
    """Return the message for an error of composing the config."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return unknown_choice(text, line.folders)
    if found := re.match(r"Could not override '([^']+)'", text):
        return unknown_key(found[1], line)
    if found := re.match(r"Could not delete from config\. '([^']+)'", text):
        return f"~{found[1]}: the config has no such key to delete"
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = found[1], found[2]
        listed = shlex.quote(f"{key}=[{value}]")
        return f"{key}={value}: a list is {listed}; a sweep is cfsp -m {key}={value}"
    return " ".join(text.split())


def unreadable(override: str) -> str:
    """Return the message for an override that Hydra's grammar cannot parse."""
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


def unknown_choice(text: str, folders: Sequence[Path]) -> str:
    """Return the message for a choice that a group does not have."""
    found = re.search(r"Could not (?:find|load) '([\w/]+)/([^/']+)'", text)
    if found is None:
        return " ".join(text.split("Config search path")[0].split())
    group, name = found[1], found[2].removesuffix(".yaml")
    there = [choice.name for choice in choices_of(group, folders)]
    return f"{group}={name}: no such choice; {suggest(name, there)}\n  cfsp list {group} says what each is"


def unknown_key(key: str, line: CommandLine) -> str:
    """Return the message for a key that the config does not have."""
    if key in groups(line.folders):
        return unplaced_group(key, line)
    known = [*known_keys(line), *groups(line.folders)]
    part, dot, name = key.rpartition(".")
    head = part + dot
    inside = [one.removeprefix(head) for one in known if head and one.startswith(head)]
    meant = hint(name, inside, most=3, before=head) if inside else hint(key, known, most=3)
    return f"{key}: no such option{meant}\n  {what_shows(key, line)}"


def unplaced_group(group: str, line: CommandLine) -> str:
    """Return the message for a group of which the config, as the user chose it, has no choice."""
    part = group.rpartition("/")[0]
    owners = [f"{part}={one.name}" for one in choices_of(part, line.folders) if group in one.parts()]
    experiments = [one for one in line.overrides if one.startswith("+experiment=")]  # one may fix the part
    place = f"in place of {' '.join(experiments)}" if experiments else "beside it"
    way = f"{' or '.join(owners)} {place}" if owners else f"+{group}=NAME, with a plus"
    return f"{group}: the config has no such part; expected {way}\n  cfsp list {group} says what there is"


def what_shows(key: str, line: CommandLine) -> str:
    """Return which command shows the options beside a key."""
    given = dict(one.lstrip("+").split("=", 1) for one in line.overrides if "=" in one)
    usual = {found["group"]: found["choice"] for found in map(DEFAULT.search, main_config()) if found}
    parts = key.split(".")
    groups_of_key = ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    ways = [(group, given.get(group)) for group in groups_of_key]
    ways += [(group, parts[1]) for group in groups_of_key[-1:]]  # evaluation.perplexity.window
    experiments = [(name, choice) for name, choice in given.items() if name.startswith("experiment")]
    ways += experiments or [(group, usual.get(group)) for group in groups_of_key[-1:]]
    for group, name in ways if groups_of_key else ():
        if name in {choice.name for choice in choices_of(group, line.folders)}:
            return f"cfsp describe {group}={name} shows its options"
    return "cfsp --help shows all options"


def known_keys(line: CommandLine) -> list[str]:
    """Return the dotted keys of the config with the user's choices, or else of the default one."""
    choices = [one for one in line.overrides if re.match(r"\+?[\w/]+=[\w/\[]", one)]
    for attempt in (choices, []):
        try:
            whole = plain(composed(attempt, line))
        except REFUSALS:
            continue
        return [*whole, *(key for key, _ in leaf_options(whole))]
    return []
