"""Identity: the id of a run and the names of its parts, both made from its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cfsp.records.wanted import target_of
from cfsp.storage.fingerprints import digest

NOT_IDENTITY = (
    "results",
    "cache",
    "overwrite",
    "device",
    "logger",
    "save",
    "export",
    "push",
    "private",
    "plugins",
)
"""Parts of the config that say where and how a run happens, not what it computes."""

AS_EVER = {"task": {"_target_": "LanguageModelling"}}
"""Values of parts that older configs lack. They are left out, so that older runs keep their ids."""

NONE_AS_EVER = frozenset({"teacher"})
"""Options inside parts that older configs lack. They are left out if they are None."""


def run_id(config: Mapping[str, Any]) -> str:
    """Return the id of a run by what it computes: a hash of the config without paths, device and logger.

    A class of this package enters by its name only, so that moving code does not change ids. A target enters
    as an amount, however it was typed; a config without one is as configs were before there were targets.
    """
    identity = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    if "model" in identity:
        identity["model"] = {key: value for key, value in identity["model"].items() if key != "device"}
    wanted = target_of(identity.pop("target", None))
    identity = without_homes(identity) | ({"target": wanted.data} if wanted else {})
    return digest({key: value for key, value in identity.items() if AS_EVER.get(key) != value})


def without_homes(config: Any) -> Any:
    """Replace the paths of this package's classes in a config by their names."""
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if value is not None or key not in NONE_AS_EVER}
        return {key: without_homes(value) for key, value in kept.items()} | (
            {"_target_": config["_target_"].rsplit(".", 1)[-1]}
            if str(config.get("_target_")).startswith("cfsp.")
            else {}
        )
    return [*map(without_homes, config)] if isinstance(config, list) else config


OF_PRUNER = {"lhspg": "lorashear"}
"""Pruner -> the schedule that is named otherwise."""

OF_OPTION = {"Predictor": ("signs", "deja_vu", "moefication"), "Threshold": ("weighted", "wina", "teal")}
"""Class that makes routers -> an option, and what the maker is called with it and without."""

METHODS = {"routing": "lte"}
"""Schedule that learns its scores -> its method, if that has another name."""


def method_name(config: Mapping[str, Any]) -> str:
    """Return the name of a run's method: its criterion, or what decides in its place.

    That is the maker of its routers (teal), or the schedule that learns its scores (lorashear, lte).
    """
    name, schedule = part_name(config["criterion"]), config.get("schedule")
    if name != "learned" or schedule is None:
        return name
    name = part_name(schedule.get("maker", schedule))
    return METHODS.get(name, name)


def part_name(config: Mapping[str, Any]) -> str:
    """Return the name of a part on the command line, made from the name of its class.

    A recovery with parameters and an objective is named after both: lora, importance_lora, distill;
    dynamic, if it trains in rounds what lora does. A schedule with a pruner is named after that: movement. A
    maker of routers is named after its options: teal, wina.
    """
    if "pruner" in config:
        name = part_name(config["pruner"])
        return OF_PRUNER.get(name, name)
    name = config["_target_"].rsplit(".", 1)[-1]
    if {"parameters", "objective"} <= config.keys():
        trained = recovery_name(config["parameters"], config["objective"])
        rounds = "dynamic" if trained == "lora" else f"dynamic/{trained}"
        return rounds if name == "Dynamic" else trained
    if name in OF_OPTION:
        option, with_it, without = OF_OPTION[name]
        return with_it if config.get(option) else without
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    name = re.sub(r"_(compensation|recovery)$", "", name)
    return "none" if name == "no" else name


def recovery_name(parameters: Mapping[str, Any], objective: Mapping[str, Any]) -> str:
    """Return the name of a recovery, made from its parameters and its objective."""
    trained, learned = part_name(parameters), part_name(objective)
    follows = parameters.get("proportional_to", "uniform")
    if follows != "uniform":
        trained = f"{follows}_{trained}"
    if learned == "next_token":
        return trained
    return "distill" if (trained, learned) == ("lora", "distillation") else f"{trained}/{learned}"
