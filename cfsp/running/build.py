"""Build: from config to objects. The only place that calls Hydra's instantiate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from cfsp.checks import UnknownName
from cfsp.machine.environment import PACKAGE
from cfsp.options import check_option, declared, hint
from cfsp.running.plain import plain

CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""Inside the package in a wheel, beside it in a checkout; never the working directory."""


def build(config: DictConfig | Mapping[str, Any], **overrides: Any) -> Any:
    """Make the object that a config names.

    Raises what its constructor raises, without Hydra's wrapper; ValueError for an unknown option.
    """
    try:
        return instantiate(config, _convert_="object", **overrides)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, TypeError):
            raise ValueError(f"{config['_target_']}: {cause}") from cause
        raise cause from None


def search_path(config_dir: str | None) -> list[Path]:
    """Return the folders of config groups, the user's own first."""
    return [*([Path(config_dir)] if config_dir else []), CONF]


def choices(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """Return the names of a config group's choices: its YAML files."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def choice_config(group: str, name: str, **root: Any) -> DictConfig:
    """Return the config `group/name`, resolved; `root` fills interpolations such as ${seed}.

    Raises:
        KeyError: no such name; the message suggests the nearest.
        ValueError: the choice is made of choices of other groups.
    """
    if name not in choices(group):
        known = choices(group)
        raise UnknownName(f"{group} {name!r}: expected one of {', '.join(known)}{hint(name, known)}")
    config = OmegaConf.load(CONF / group / f"{name}.yaml")
    if "defaults" in config:
        raise ValueError(
            f"{group} {name!r} is made of choices of other groups, which only a run composes: cfsp "
            f"{group}={name}; expected another name, or an object"
        )
    whole = OmegaConf.create({**root, group: config})
    return OmegaConf.create(dict(plain(whole, resolve=True)[group]))


def build_components(names: Mapping[str, Any], options: Mapping[str, Any], **root: Any) -> dict[str, Any]:
    """Build one object per group; each option goes to the one component that has it.

    names: group -> name of a YAML file, or an object that is taken as it is.

    Raises:
        KeyError: no such name.
        TypeError: an option that no component has, or that two have.
    """
    configs = {
        group: choice_config(group, name, **root) for group, name in names.items() if isinstance(name, str)
    }
    accepted = {group: declared(get_class(config["_target_"])) for group, config in configs.items()}
    for option, value in options.items():
        owners = [group for group in accepted if option in accepted[group]]
        if len(owners) != 1:
            known = ", ".join(
                f"{group}: {', '.join(sorted(names)) or '-'}" for group, names in accepted.items()
            )
            reason = (
                "no component has it" if not owners else f"{' and '.join(owners)} have it; pass an object"
            )
            raise TypeError(f"option {option!r}: {reason} ({known})")
        check_option(option, value, accepted[owners[0]][option])
        configs[owners[0]][option] = value
    return {group: build(configs[group]) if group in configs else name for group, name in names.items()}
