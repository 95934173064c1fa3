"""Overrides: adapt the arguments of `cfsp` to what Hydra accepts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from cfsp.records.wanted import SHAPES
from cfsp.running.build import CONF, choices, search_path

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

DECIDING = ("experiment", "schedule", "criterion", "allocator", "compensation")
"""Groups whose choice says how a plan is made."""


@dataclass(frozen=True)
class CommandLine:
    """The arguments of `cfsp`. config_dir: a folder with the user's own config groups."""

    overrides: list[str]
    config_dir: str | None = None
    config_name: str = "config"
    sweeps: bool = False

    @classmethod
    def of(cls, arguments: Sequence[str]) -> CommandLine:
        overrides, values, flag = [], {}, None
        for argument in arguments:
            name, sign, value = argument.partition("=")
            if flag is not None:
                values[flag], flag = argument, None
            elif argument in VALUED:
                flag = argument
            elif not argument.startswith("-"):
                overrides.append(argument)
            elif sign:
                values[name] = value
        config_dir = values.get("--config-dir", values.get("-cd"))
        config_name = values.get("--config-name", values.get("-cn", "config"))
        return cls(overrides, config_dir, config_name, bool({"-m", "--multirun"} & {*arguments}))

    @property
    def folders(self) -> list[Path]:
        """Folders of config groups, the user's own first."""
        return search_path(self.config_dir)

    def has_group(self, name: str) -> bool:
        return any((folder / name).is_dir() for folder in self.folders)


def understood(arguments: Sequence[str]) -> list[str]:
    """Return the arguments; those below a swept group become sweeps over their one value.

    A target stands for itself: it sets the sparsity to null, whatever the configs say. A saved model of which
    nothing is to go is measured as it is.

    Hydra first composes a sweep's config without the swept keys. For `recovery=lora,full
    recovery/data=text` it would look for `recovery/data` in the default recovery and fail. A sweep over
    one value is applied in the jobs only.

    Raises:
        ValueError: a group is given null, a number or true instead of a name; a sparsity beside a target.
    """
    try:
        parsed = {one: parse_override(one) for one in arguments if is_override(one)}
    except HydraException:  # composing the config explains it
        return [*arguments]
    line = CommandLine.of(arguments)
    for override in parsed.values():
        check_group(override, line.folders)
    arguments = [*arguments, *without_sparsity(parsed.values()), *left_as_saved(parsed.values())]
    if not line.sweeps:
        return [*arguments]
    swept = [one.key_or_group for one in parsed.values() if one.is_sweep_override()]
    swept = [name for name in swept if line.has_group(name)]
    return [waiting(one) if one in parsed and lies_in(parsed[one], swept) else one for one in arguments]


def without_sparsity(overrides: Iterable[Override]) -> list[str]:
    """Return the override that a target implies; none without a target.

    Raises ValueError if a sparsity or its base is given too.
    """
    given = {one.key_or_group: one for one in overrides if one.value() is not None}
    found = [name for name, one in given.items() if any(kind in SHAPES for kind in kinds_of_target(one))]
    if not found:
        return []
    for name in ("sparsity", "sparsity_of", "schedule.sparsity", "schedule.sparsity_of"):
        if name in given:
            raise ValueError(
                f"{given[found[0]].input_line} beside {given[name].input_line}: a target is of the whole "
                "model and takes the place of a sparsity; expected one of them"
            )
    return ["sparsity=null"]


def left_as_saved(overrides: Iterable[Override]) -> list[str]:
    """Return the overrides for a saved model that is only to be measured; say so on stderr.

    That is one that is routed, because its MLPs cannot be cut, if the arguments name nothing that decides or
    removes; and any with `sparsity=0`, if they name nothing else that decides or trains.
    """
    given = {one.key_or_group: one for one in overrides}
    path, named = given.get("model.path"), {name.split(".")[0] for name in given}
    if path is None or path.is_sweep_override() or named & {*DECIDING} or without_sparsity(given.values()):
        return []
    folder = Path(str(path.value()))
    if "sparsity" in given:
        only = given["sparsity"].value() == 0 and "recovery" not in named
        if not (only and (folder / "plan.json").is_file()):
            return []
        print(f"cfsp: {folder} is measured as it is (schedule=unchanged)", file=sys.stderr)
        return ["schedule=unchanged"]
    if named & {"sparsity_of", "sites"} or not is_routed(folder):
        return []
    print(
        f"cfsp: {folder} is routed, so none of its units goes (schedule=unchanged sparsity=0)",
        file=sys.stderr,
    )
    return ["schedule=unchanged", "sparsity=0"]


def is_routed(folder: Path) -> bool:
    """Return whether the config of a saved model describes routed MLPs."""
    try:
        described = json.loads((folder / "config.json").read_text()).get("pruned")
    except (OSError, ValueError):  # loading the model explains it
        return False
    if not described:
        return False
    from cfsp.model.modeling_routed import RoutedMLP  # which imports torch

    return any(module.get("class") == RoutedMLP.__name__ for module in described.get("modules", []))


def kinds_of_target(override: Override) -> list[str]:
    """Return the options of `target` that an override sets: target.memory=2GiB, target={memory:2GiB}."""
    value = override.value()
    if override.key_or_group == "target" and isinstance(value, dict):
        return [str(name) for name, one in value.items() if one is not None]
    group, _, name = override.key_or_group.partition(".")
    return [name] if group == "target" else []


def without_flag(arguments: Sequence[str], flags: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the arguments without a flag that takes a value, and the value; None if it is not given."""
    rest, found, awaited = [], None, False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if awaited:
            found, awaited = argument, False
        elif name in flags:
            found, awaited = value, not equals
        else:
            rest.append(argument)
    return rest, found


def is_override(argument: str) -> bool:
    """Return whether an argument sets a key; `--flag=value` and `~key=value` do not."""
    return re.match(r"[+\w]", argument) is not None and "=" in argument


def parse_override(argument: str) -> Override:
    return OverridesParser.create().parse_override(argument)


def check_group(override: Override, folders: Sequence[Path]) -> None:
    """Raise ValueError if one of our groups is given null, a number or true."""
    if not (CONF / override.key_or_group).is_dir():
        return
    given = override.value()
    for value in given.list if isinstance(given, ChoiceSweep) else [given]:
        if value is None or isinstance(value, bool | int | float):
            names = ", ".join(choices(override.key_or_group, folders))
            raise ValueError(f"{override.key_or_group}={value}: expected the name of a choice: {names}")


def lies_in(override: Override, swept: Sequence[str]) -> bool:
    """Return whether an override sets one value of a key below a swept group."""
    key = override.key_or_group.replace("/", ".")
    below = any(key.startswith(group.replace("/", ".") + ".") for group in swept)
    return below and not override.is_sweep_override()


def waiting(argument: str) -> str:
    """Return `key=value` as a sweep over this value."""
    key, _, value = argument.partition("=")
    return f"{key}=choice({value})" if value else argument
